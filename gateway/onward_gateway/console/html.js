// Templates: htm binds tagged templates to preact, which escapes every text and attribute.

import { h } from "preact";
import htm from "htm";

export { Component, Fragment, render } from "preact";
export { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
export const html = htm.bind(h);
