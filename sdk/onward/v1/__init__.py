"""The contract's messages and stubs, generated from `protos/onward/v1`. Never edited: `make gen` writes them."""
