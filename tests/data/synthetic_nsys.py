"""A synthetic export of Nsight Systems with something private in every place that can hold a text."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

SECRETS = (
    "alice-at-example",
    "/home/alice/hidden-project",
    "gpu-host-77.corp",
    "sk-live-0123456789abcdef",
    "--api-key=hunter2",
    "alice_the_user",
)
"""User, path, host, token, argument, and a word that could be a key."""
OWN_RANGE, FOREIGN_RANGE = "stage:embedding", "quarterly forecast"

_TABLES = {
    "StringIds": "id INTEGER, value TEXT",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, demangledName INTEGER, shortName INTEGER, graphNodeId INTEGER, "
    "someLaterColumn INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER, end INTEGER, globalTid INTEGER, correlationId INTEGER, "
    "nameId INTEGER, name TEXT",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER, end INTEGER, deviceId INTEGER, correlationId INTEGER, "
    "globalPid INTEGER, bytes INTEGER, copyKind INTEGER, name TEXT",
    "NVTX_EVENTS": "start INTEGER, end INTEGER, eventType INTEGER, text TEXT, textId INTEGER, globalTid INTEGER, "
    "domainId INTEGER, int64Value INTEGER, doubleValue REAL, jsonText TEXT, binaryData TEXT",
    "TARGET_INFO_GPU": "id INTEGER, name TEXT, uuid TEXT, busLocation TEXT, memoryBandwidth INTEGER, smCount INTEGER, "
    "luid INTEGER, ctrlDevPath TEXT",
    "PROCESSES": "globalPid INTEGER, pid INTEGER, name TEXT",
    "ThreadNames": "nameId INTEGER, priority INTEGER, globalTid INTEGER",
    "META_DATA_EXPORT": "name TEXT, value TEXT",
    "META_DATA_CAPTURE": "name TEXT, value TEXT",
    "TARGET_INFO_SYSTEM_ENV": "name TEXT, value TEXT",
    "DIAGNOSTIC_EVENT": "timestamp INTEGER, severity INTEGER, text TEXT",
    "ProcessStreams": "globalPid INTEGER, filenameId INTEGER, contentId INTEGER",
    "ENUM_CUDA_MEMCPY_OPER": "id INTEGER, name TEXT, label TEXT",
    "SOME_TABLE_OF_A_LATER_VERSION": "note TEXT",
}  # fmt: skip
PID = 4242 << 24
TID = PID + 7


def write_nsys(path: Path) -> Path:
    """Two kernels, one copy, a range of ours and one of a user's, and secrets everywhere else."""
    user, home, host, token, flag, word = SECRETS
    strings = list(enumerate(("gemm_kernel", "cudaLaunchKernel_v7000", OWN_RANGE, home, f"python {flag}", user), 1))
    with closing(sqlite3.connect(path)) as db:
        for table, columns in _TABLES.items():
            db.execute(f"CREATE TABLE {table} ({columns})")
        fill = {
            "StringIds": strings,
            "CUPTI_ACTIVITY_KIND_KERNEL": [
                (100, 200, 0, 7, 1, PID, 1, 1, None, 5), (300, 450, 0, 7, 2, PID, 1, 1, None, token),
            ],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [
                (10, 20, TID, 1, 2, None), (30, 40, TID, 2, 2, home), (50, 60, TID, 3, 2, None),
            ],
            "CUPTI_ACTIVITY_KIND_MEMCPY": [(500, 600, 0, 3, PID, 4096, 1, host)],
            "NVTX_EVENTS": [
                (0, None, 75, "ctrbench", None, TID, 1, None, None, None, None),
                (0, None, 39, user, None, TID, 0, None, None, None, None),
                (0, None, 39, None, 6, TID, 0, None, None, None, None),
                (5, 25, 60, None, 3, TID, 1, 12, 0.5, f'{{"who": "{user}"}}', token.encode()),
                (28, 45, 59, FOREIGN_RANGE, None, TID, 0, None, None, None, None),
            ],
            "TARGET_INFO_GPU": [(0, "Tesla T4", f"GPU-{token}", host, 320_064_000_000, 40, 77, home)],
            "PROCESSES": [(PID, 4242, f"{home}/train.py"), (1 << 24, 1, user)],
            "ThreadNames": [(6, 20, TID)],
            "META_DATA_EXPORT": [
                ("EXPORT_SCHEMA_VERSION", "3.24.14"), ("EXPORT_PRODUCT_VERSION", host), (user, "1"),
                ("EXPORT_FILE", home), (word, word),
            ],
            "META_DATA_CAPTURE": [("COMMAND_LINE", f"python train.py {flag}"), ("ENVIRONMENT", f"TOKEN={token}")],
            "TARGET_INFO_SYSTEM_ENV": [("Hostname", host), ("UserName", user), (word, word)],
            "DIAGNOSTIC_EVENT": [
                (1, 1, "Number of CUDA events collected: \t6."), (2, 1, f"see {home}/stdout.log"),
                (3, 2, f"Number of {user} events collected: \t6."),
            ],
            "ProcessStreams": [(PID, 4, 5)],
            "ENUM_CUDA_MEMCPY_OPER": [(1, "CUDA_MEMCPY_KIND_HTOD", "Host-to-Device"), (2, home, user)],
            "SOME_TABLE_OF_A_LATER_VERSION": [(token,)],
        }  # fmt: skip
        for table, rows in fill.items():
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        # deleted rows stay in free pages, unless SQLite was built to wipe them
        db.execute("PRAGMA secure_delete = OFF")
        db.execute("CREATE TABLE gone (text TEXT)")
        db.executemany("INSERT INTO gone VALUES (?)", [(f"{token} {home} {host} {i}",) for i in range(2000)])
        db.commit()
        db.execute("DROP TABLE gone")
        db.commit()
    return path
