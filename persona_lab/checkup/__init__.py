"""The doctor: what of a home is damaged, half-made or out of step, and what can be done about it. No torch.

`examine` lists and changes nothing. `repair` puts damaged things aside (into `quarantine/<time>/`, never away), and
puts right what can be: from an earlier version, from a backup, from the records of a run, or by keeping whole lines.
"""

from persona_lab.checkup.doing import examine, repair
from persona_lab.checkup.findings import Finding

__all__ = ["Finding", "examine", "repair"]
