"""``python -m serve --model bundled --port 8000``."""

from serve.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
