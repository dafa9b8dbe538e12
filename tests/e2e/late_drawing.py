"""`python app.py` on a machine so slow that a redraw of the Chat tab is sent only when the replies behind it are done.

While the file `hold` lies in the data home, each redraw is computed as always, and then kept until a reply that is
being written, or else the next one to be asked for, has come to its end and reached the window; and replies are slow.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from persona_lab.engine import Engine
from persona_lab.ui.app import main
from persona_lab.ui.chat_tab import Chat

AFTER_SECONDS = 1.5
LONGEST_SECONDS = 60.0
CHUNK_SECONDS = 0.2
draw, chat = Chat.draw, Engine.chat


def late(self, session):
    asked, busy = session.asked, session.busy
    updates = draw(self, session)
    if (self.page.engine.home.root / "hold").exists():
        print("drawn", flush=True, file=sys.stderr)
        end = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < end and (session.busy or (not busy and session.asked == asked)):
            time.sleep(0.02)
        time.sleep(AFTER_SECONDS)
        print("sent late", flush=True, file=sys.stderr)
    return updates


def slow(self, requests, owner=""):
    for chunk in chat(self, requests, owner):
        if (self.home.root / "hold").exists():
            time.sleep(CHUNK_SECONDS)
        yield chunk


Chat.draw, Engine.chat = late, slow
sys.exit(main())
