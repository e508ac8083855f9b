"""``python -m iresnet``: the command line."""

from iresnet.interrupts import heed_interrupts

if __name__ == "__main__":
    heed_interrupts()  # before the imports of the command line, which take a while
    from iresnet.cli import main

    main()
