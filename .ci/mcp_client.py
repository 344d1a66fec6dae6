#!/usr/bin/env python3
"""A stock MCP client against the gateway: list, set an instruction and read it back, run with and without
waiting, page and grep the output, read files, cancel a tree of processes. In both eras, over HTTP and stdio.

    mcp_client.py URL TOKEN_FILE MUSTER HOST
"""

import asyncio
import base64
import os
import pathlib
import re
import sys
import tempfile

import httpx2
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

LINES = 20_000

# A PNG of one pixel.
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def check(truth, *shown):
    if not truth:
        raise AssertionError(" ".join(str(each) for each in shown))


async def call(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    text = "\n".join(block.text for block in result.content)
    check(not result.is_error, tool, arguments, text)
    return result.structured_content, text


def job_id_in(text):
    found = re.match(r"job (j-[0-9a-z]{20}) ", text)
    check(found, "no status line:", text)
    return found.group(1)


def processes(marker):
    """Command lines of processes whose environment holds the marker."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes())
        except OSError:
            pass  # It has just ended, or is not ours.
    return found


async def eventually(what, ask, limit=20.0):
    async with asyncio.timeout(limit):
        while not (answer := ask()):
            await asyncio.sleep(0.05)
    return answer


async def story(client, host, where):
    tools = [tool.name for tool in (await client.list_tools()).tools]
    check(tools == ["host_list", "host_set", "run", "file_read", "job_get", "job_input", "job_cancel", "grant_request"], tools)

    # List; set an instruction and read it back.
    listed, _ = await call(client, "host_list")
    check(host in [each["name"] for each in listed["hosts"]], listed)
    text = f"Set over {where}. Be gentle."
    await call(client, "host_set", target=host, instruction=text)
    listed, _ = await call(client, "host_list", target=host, detail="full")
    check(text in str(listed["hosts"][0]["instruction"]), listed)

    # Run, and wait for the end.
    _, answer = await call(client, "run", target=host, command="echo out; echo err >&2; exit 3")
    check(" failed exit=3 " in answer.splitlines()[0], answer)
    check("out\n" in answer and "err\n" in answer, answer)

    # Run without waiting, then wait; the same key names the same job.
    key = f"{where}-{os.getpid()}"
    again = dict(target=host, argv=["seq", "1", str(LINES)], key=key)
    _, answer = await call(client, "run", **again, wait_s=0)
    job = job_id_in(answer)
    _, answer = await call(client, "job_get", job_id=job, wait_s=25)
    check(" succeeded exit=0 " in answer.splitlines()[0], answer)
    check(len(answer.encode()) <= 16_000, len(answer.encode()))
    _, answer = await call(client, "run", **again)
    check(job_id_in(answer) == job, "another job for the same key", answer)

    # Page through the whole output; nothing is missing, nothing comes twice.
    numbers, cursor = [], "0"
    while cursor is not None:
        _, page = await call(client, "job_get", job_id=job, cursor=cursor)
        check(len(page.encode()) <= 16_000, len(page.encode()))
        numbers += re.findall(r"^[0-9]+$", page, re.MULTILINE)
        found = re.search(r"cursor=([0-9]+)", page)
        cursor = found and found.group(1)
    check(numbers == [str(number) for number in range(1, LINES + 1)], len(numbers), numbers[:3], numbers[-3:])

    # Tail and grep.
    _, tail = await call(client, "job_get", job_id=job, tail=3)
    check(re.findall(r"^[0-9]+$", tail, re.MULTILINE) == ["19998", "19999", "20000"], tail)
    _, matches = await call(client, "job_get", job_id=job, grep="^1234.$")
    check(all(f"1234{digit}" in matches for digit in range(10)), matches)
    check("12350" not in matches, matches)

    # Read a file on by the call that each answer ends with, and see an image.
    with tempfile.TemporaryDirectory() as directory:
        log = pathlib.Path(directory, "log")
        log.write_text("".join(f"entry {number}\n" for number in range(1, LINES + 1)))
        numbers, line = [], 1
        while line is not None:
            _, page = await call(client, "file_read", target=host, path=str(log), from_line=line, max_bytes=50_000)
            check(len(page.encode()) <= 50_000, len(page.encode()))
            numbers += re.findall(r"^([0-9]+)\tentry \1$", page, re.MULTILINE)
            found = re.search(r"^next: .* from_line=([0-9]+)", page, re.MULTILINE)
            line = found and int(found.group(1))
        check(numbers == [str(number) for number in range(1, LINES + 1)], len(numbers), numbers[:3], numbers[-3:])
        dot = pathlib.Path(directory, "dot.png")
        dot.write_bytes(base64.b64decode(DOT))
        result = await client.call_tool("file_read", {"target": host, "path": str(dot)})
        check([block.type for block in result.content] == ["text", "image"], result)
        check(result.content[1].mime_type == "image/png", result)
        result = await client.call_tool("file_read", {"target": host, "path": directory})
        check(result.is_error and "FILE_TYPE" in result.content[0].text, result)

    # Cancel a tree: all of it goes.
    marker = f"MUSTER_CI_TREE={where}-{os.getpid()}"
    tree = "sleep 600 & (sleep 600 & setsid sleep 600 & wait) & sleep 600"
    name, value = marker.split("=")
    _, answer = await call(client, "run", target=host, command=tree, env={name: value}, wait_s=0)
    job = job_id_in(answer)
    await eventually("the tree runs", lambda: sum(b"sleep" in line for line in processes(marker)) >= 4)
    _, answer = await call(client, "job_cancel", job_id=job, grace_s=1)
    check(" cancelled" in answer.splitlines()[0], answer)
    await eventually("the tree is gone", lambda: not processes(marker))

    # A mistake says what to do next.
    result = await client.call_tool("run", {"target": "no-such-host", "command": "true"})
    check(result.is_error and "no-such-host" in result.content[0].text, result)
    result = await client.call_tool("run", {"target": host, "command": "true", "wait": 3})
    check(result.is_error and "wait_s" in result.content[0].text, result)


async def main():
    url, token_file, muster, host = sys.argv[1:]
    headers = {"authorization": f"Bearer {pathlib.Path(token_file).read_text().strip()}"}
    stdio = StdioServerParameters(command=muster, args=["mcp"], env=dict(os.environ))
    for mode in ("legacy", "2026-07-28"):
        async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
            async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
                await story(client, host, f"http-{mode}")
                print(f"MCP over HTTP, {mode}: good")
        async with Client(stdio, mode=mode) as client:
            await story(client, host, f"stdio-{mode}")
            print(f"MCP over stdio, {mode}: good")


asyncio.run(main())
