// Text that grows. New pieces are appended to what stands, past the template engine, so that a long text costs no more
// per token than a short one; text nodes show everything as it is.

import { Component, html } from "./html.js";

const BLOCK_CHARS = 2000;

export class Prose extends Component {
  #node = null;
  #part = null;
  #count = 0;
  #voided = 0;

  componentDidMount() {
    this.#draw(this.props.part);
  }

  shouldComponentUpdate({ part }) {
    this.#draw(part);
    return false;
  }

  #draw(part) {
    const node = this.#node;
    if (part !== this.#part || part.voided !== this.#voided) {
      node.replaceChildren();
      this.#part = part;
      this.#count = 0;
      this.#voided = part.voided;
    }
    if (this.#count === part.texts.length) return;
    let text = part.texts.slice(this.#count).join("");
    this.#count = part.texts.length;
    while (text) {
      let block = node.lastChild;
      if (!block || (block.firstChild.length > BLOCK_CHARS && block.firstChild.data.endsWith("\n"))) {
        block = document.createElement("div");
        block.append("");
        node.append(block);
      }
      // A block ends at a line's end, so that blocks below each other look like one text.
      const room = Math.max(0, BLOCK_CHARS - block.firstChild.length);
      const line = text.indexOf("\n", room);
      const piece = line < 0 ? text : text.slice(0, line + 1);
      block.firstChild.appendData(piece);
      text = text.slice(piece.length);
    }
  }

  render() {
    return html`<div class="prose" ref=${(node) => (this.#node = node)}></div>`;
  }
}
