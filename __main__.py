"""``python -m servable``: the same as the command ``servable``."""

from .cli import main

if __name__ == "__main__":
    main()
