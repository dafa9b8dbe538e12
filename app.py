"""Start Persona Lab's page: `python app.py [--home DIR] [--host H] [--port N] [--share] [--no-browser] [--debug]`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from persona_lab.ui.app import main

    sys.exit(main())
