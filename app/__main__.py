"""``python -m app --model bundled``."""

from app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
