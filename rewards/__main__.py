"""Grade one completion and say why: `python -m rewards --gold '\\frac12' --completion '... \\boxed{0.5}'`."""

import argparse
import sys

from rewards import grading


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rewards", description="Grade a completion and say why.")
    parser.add_argument("--gold", required=True, help="the reference answer")
    parser.add_argument("--completion", required=True, help="the text to grade; - reads it from standard input")
    parser.add_argument("--require-box", action="store_true", help="let only a boxed answer count")
    parser.add_argument("--timeout", type=float, default=None, help="seconds it may take (default 3)")
    options = parser.parse_args()
    completion = sys.stdin.read() if options.completion == "-" else options.completion
    pair = grading.extract_pairs([completion], [options.gold], require_box=options.require_box)[0]
    gold, answer = pair
    judgement = grading.judge([pair], timeout=options.timeout)[0]
    verdict = {1.0: "right", 0.0: "wrong", None: "not scored"}[judgement["score"]]
    print(f"verdict:   {verdict} ({judgement['score']})")
    print(f"gold:      {gold if gold is not None else '(cannot be read)'}")
    print(f"extracted: {answer if answer is not None else '(no answer)'}")
    print(f"why:       {judgement['why']}")
    grading.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
