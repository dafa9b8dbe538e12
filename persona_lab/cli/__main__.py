"""`python -m persona_lab.cli`, the same as `persona-lab`."""

from persona_lab.cli import main

main()
