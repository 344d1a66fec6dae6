#!/usr/bin/env python3
"""Verifies the chain of an audit log that `muster audit export` wrote, by what docs/audit.md says and nothing else.

    verify_audit.py audit.jsonl [HEADS ...]

HEADS are files as `muster agent heads` prints them. Signatures are for `muster audit verify --ca` to check.
"""

import hashlib
import json
import re
import sys

TAIL = re.compile(r',"hash":"([0-9a-f]{64})"}$')
BEGIN = re.compile(r'{"number":(\d+),"time":(\d+),')


def verify(lines, heads):
    header = json.loads(next(lines))
    if header["muster_audit"] != 1:
        return "the format is not 1"
    count, last = header["after"], bytes.fromhex(header["before"])
    begun, stood, own = count, {count: last}, None
    wanted = {head["count"] for head in heads}
    for line in lines:
        line = line.rstrip("\n")
        if own is not None:
            return "there are lines behind the head"
        if line.startswith('{"head":'):
            own = json.loads(json.loads(line)["head"]["statement"])
            continue
        count += 1
        tail, begin = TAIL.search(line), BEGIN.match(line)
        if not tail or not begin or int(begin[1]) != count:
            return f"entry {count} is not where it belongs"
        text = line[: tail.start()] + "}"
        last = hashlib.sha256(b"muster audit entry 1\n" + last + text.encode()).digest()
        if last.hex() != tail[1]:
            return f"entry {count} does not follow from the one before it"
        if count in wanted:
            stood[count] = last
    if own is None:
        return f"cut: there is no head behind entry {count}"
    stood[count] = last
    for head in heads + [own]:
        if head["count"] > count:
            return f"cut: {count} entries, and a head for {head['count']}"
        if head["count"] >= begun and stood[head["count"]].hex() != head["hash"]:
            return f"rewritten: the head of entry {head['count']} says otherwise"
    if own["count"] != count:
        return f"{count} entries, and a head for {own['count']}"
    print(f"whole: entries {begun + 1} to {count}, {len(heads) + 1} heads agree")
    return None


def read_heads(paths):
    return [json.loads(json.loads(line)["statement"]) for path in paths for line in open(path, encoding="utf-8")]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8", newline="\n") as log:
        sys.exit(verify(log, read_heads(sys.argv[2:])))
