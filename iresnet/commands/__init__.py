"""The commands of the command line, one in a file: each calls the library, prints, and returns its exit status."""
