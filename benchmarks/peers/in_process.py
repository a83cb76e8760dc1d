"""A peer's classifier without server and network: `python in_process.py APPLICATION SECONDS < texts.json`.

Runs in the peers' environment. It loads the classifier, answers every text once, prints "ready", waits for a line, and
prints how many texts it then classified in SECONDS: what the application costs without HTTP.
"""

import importlib
import itertools
import json
import sys
import time


def main() -> None:
    """Classify one text after the other."""
    classifier = importlib.import_module(sys.argv[1]).classifier
    texts = json.loads(sys.stdin.readline())
    for text in texts:
        classifier(text, truncation=True)
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.perf_counter() + float(sys.argv[2])
    done = 0
    for text in itertools.cycle(texts):
        classifier(text, truncation=True)
        if time.perf_counter() > end:
            break
        done += 1
    print(done, flush=True)


if __name__ == "__main__":
    main()
