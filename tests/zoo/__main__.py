"""``python tests/zoo`` writes the table of docs/your_model.md; ``--run`` prints what comes of each call."""

import sys
from pathlib import Path

root = Path(__file__).parents[2]
sys.path[:0] = [str(root), str(root / "tests")]  # as pytest has them


def main() -> None:
    from zoo import calls, table

    if "--run" not in sys.argv:
        table.write()
        return
    for entry, call in table.pairs():
        print(f"{entry.name:33s} {call:9s} {getattr(calls, call)(entry).line}", flush=True)


if __name__ == "__main__":
    main()
