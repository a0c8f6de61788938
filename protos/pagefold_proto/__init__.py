"""The wire protocol of pagefold: the .proto files and the code generated from them."""
