"""``python -m dcn_det`` is ``dcn-det``."""

from dcn_det.cli import main

if __name__ == "__main__":
    main()
