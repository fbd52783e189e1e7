"""``python -m precision_explorer``."""

from precision_explorer.cli import main

if __name__ == "__main__":
    main()
