"""Makes the advisor's evidence table (persona_lab/evidence.json) of the measured comparison (docs/measured.json).

Run it after the comparison was measured anew: python benchmarks/evidence.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = ROOT / "docs" / "measured.json", ROOT / "persona_lab" / "evidence.json"
NOT_STRATEGIES = ("base", "wrong character")


def evidence(measured: dict[str, Any]) -> dict[str, Any]:
    """One outcome for each persona and strategy that was measured."""
    outcomes = [
        outcome
        for persona in measured["personas"]
        for strategy, group in persona["groups"].items()
        if strategy not in NOT_STRATEGIES and (outcome := _outcome(persona, strategy, group)) is not None
    ]
    return {"measured": measured["created"], "device": measured["machine"]["device_name"], "outcomes": outcomes}


def _outcome(persona: dict[str, Any], strategy: str, group: dict[str, Any]) -> dict[str, Any] | None:
    metric = next((m for m in group["metrics"] if m["metric"] == "specificity"), None)
    if metric is None or metric["value"] is None:
        return None
    seconds = [cost["seconds"] for cost in group["costs"] if cost["seconds"]]
    return {
        "strategy": strategy,
        "persona": persona["name"],
        "value": round(metric["value"], 4),
        "low": round(metric["low"], 4),
        "high": round(metric["high"], 4),
        "n": metric["n"],
        "conversations": persona["dataset"]["counts"]["train"],
        "seeds": group["seeds"],
        "seconds": round(median(seconds), 1) if seconds else None,
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(evidence(json.loads(SOURCE.read_text())), indent=1) + "\n")
    print(f"Written: {TARGET.relative_to(ROOT)}")
