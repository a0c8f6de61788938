"""`python -m pagefold`: the command line where its script is not on PATH."""

from pagefold.cli import main

if __name__ == "__main__":
    main()
