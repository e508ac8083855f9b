"""``python -m iresnet``: the command line."""

from iresnet.cli import main

if __name__ == "__main__":
    main()
