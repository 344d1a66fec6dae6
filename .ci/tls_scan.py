#!/usr/bin/env python3
"""Holds the control plane's port against sslyze: TLS 1.3 and nothing older, no early data, no compression.

Usage: tls_scan.py HOST:PORT
"""

import sys

from sslyze import (
    ScanCommand,
    ScanCommandAttemptStatusEnum,
    Scanner,
    ServerNetworkLocation,
    ServerScanRequest,
    ServerScanStatusEnum,
)

OLD = [
    ScanCommand.SSL_2_0_CIPHER_SUITES,
    ScanCommand.SSL_3_0_CIPHER_SUITES,
    ScanCommand.TLS_1_0_CIPHER_SUITES,
    ScanCommand.TLS_1_1_CIPHER_SUITES,
    ScanCommand.TLS_1_2_CIPHER_SUITES,
]
NEW = ScanCommand.TLS_1_3_CIPHER_SUITES
EARLY_DATA = ScanCommand.TLS_1_3_EARLY_DATA
COMPRESSION = ScanCommand.TLS_COMPRESSION


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    scanner = Scanner()
    scanner.queue_scans([
        ServerScanRequest(
            server_location=ServerNetworkLocation(hostname=host, port=int(port)),
            scan_commands={*OLD, NEW, EARLY_DATA, COMPRESSION},
        )
    ])
    (scanned,) = scanner.get_results()
    assert scanned.scan_status == ServerScanStatusEnum.COMPLETED, scanned.connectivity_error_trace

    def result(command):
        # Each result stands in an attribute that is named as its command.
        attempt = getattr(scanned.scan_result, command.value)
        assert attempt.status == ScanCommandAttemptStatusEnum.COMPLETED, attempt
        return attempt.result

    for command in OLD:
        accepted = [suite.cipher_suite.name for suite in result(command).accepted_cipher_suites]
        assert not accepted, f"{command.value}: {accepted}"
    suites = sorted(suite.cipher_suite.name for suite in result(NEW).accepted_cipher_suites)
    assert suites, "no suite of TLS 1.3"
    assert not result(EARLY_DATA).supports_early_data, "early data can be replayed"
    assert not result(COMPRESSION).supports_compression, "compression leaks"
    print(f"   sslyze: TLS 1.3 only ({', '.join(suites)}), no early data, no compression")


main()
