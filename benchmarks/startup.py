"""`2drcl --help` over an empty Python process, interleaved."""

import statistics
import subprocess
import sys
import time

ROUNDS = 7


def main() -> None:
    """Measure and print."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "2drcl --help": [sys.executable, "-m", "stages.cli", "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    bare = statistics.median(seconds["python -c pass"])
    for name, values in seconds.items():
        print(f"{name:16s} {statistics.median(values):6.2f} s  {statistics.median(values) / bare:6.1f} x")


if __name__ == "__main__":
    main()
