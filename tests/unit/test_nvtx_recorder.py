"""The injection library under real NVTX calls of other processes: every form of text, payload and thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.trace import inject
from ctrbench.datasets.spec import cache_dir

SYNTHETIC_CALLS = r"""
#include <nvtx3/nvToolsExt.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static nvtxRangeId_t crossing;
static nvtxDomainHandle_t domain;
static void *other(void *x) { nvtxDomainRangeEnd(domain, crossing); return x; }
static void *spin(void *x) {
    for (int i = 0; i < 500; i++) { nvtxRangePushA("spin"); nvtxRangePop(); }
    return x;
}

int main(int argc, char **argv) {
    static char big[5001];
    pthread_t threads[4];
    nvtxEventAttributes_t e = {0};
    memset(big, 'x', 5000);
    domain = nvtxDomainCreateA("forms");
    e.version = NVTX_VERSION;
    e.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    e.category = 7;
    e.colorType = NVTX_COLOR_ARGB;
    e.color = 0xFF102030;
    e.messageType = NVTX_MESSAGE_TYPE_UNICODE;
    e.message.unicode = L"wide \x1F600 \"quoted\" \\ \n";
    e.payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
    e.payload.ullValue = 0xFFFFFFFFFFFFFFFFull;
    nvtxDomainNameCategoryA(domain, 7, "seven");
    nvtxNameCategoryW(8, L"eight");
    nvtxNameOsThreadA(4242, "loader");
    nvtxDomainMarkEx(domain, &e);
    e.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
    e.message.registered = nvtxDomainRegisterStringW(domain, L"registered \xE9");
    e.payloadType = NVTX_PAYLOAD_TYPE_FLOAT;
    e.payload.fValue = 0.5f;
    nvtxDomainRangePushEx(domain, &e);
    nvtxDomainRangePop(domain);
    e.payloadType = NVTX_PAYLOAD_TYPE_INT32;
    e.payload.iValue = -3;
    e.colorType = NVTX_COLOR_UNKNOWN;
    crossing = nvtxDomainRangeStartEx(domain, &e);
    pthread_create(threads, NULL, other, NULL);
    pthread_join(threads[0], NULL);
    e.payloadType = NVTX_PAYLOAD_TYPE_DOUBLE;
    e.payload.dValue = 0.0 / 0.0;
    nvtxMarkEx(&e);
    e.size = 16;
    nvtxMarkEx(&e);
    nvtxMarkA(big);
    nvtxMarkA("bad \xff\xc3 utf-8");
    nvtxMarkA(NULL);
    nvtxRangeEnd(nvtxRangeStartW(L"plain wide"));
    for (int i = 0; i < 4; i++) pthread_create(threads + i, NULL, spin, NULL);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    nvtxDomainDestroy(domain);
    if (argc > 1) _exit(3);
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program that makes NVTX calls; it is compiled without us and attaches by environment alone."""
    try:
        command, include = inject.compiler(), inject.nvtx_include()
    except inject.RecorderUnavailable as why:
        pytest.skip(f"NVTX calls cannot be recorded here: {why}")
    folder = tmp_path_factory.mktemp("synthetic_calls")
    source = folder / "synthetic_calls.c"
    source.write_text(SYNTHETIC_CALLS)
    out = folder / "calls"
    subprocess.run([*command, "-isystem", str(include), "-o", str(out), str(source), "-ldl", "-pthread"], check=True)
    return out


@pytest.fixture(scope="module")
def events(program: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    lines = tmp_path_factory.mktemp("lines") / "calls.jsonl"
    assert inject.record([str(program)], lines) == 0
    return read(lines)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of(events: list[dict[str, Any]], *kinds: str, spin: bool = False) -> list[dict[str, Any]]:
    return [e for e in events if e["kind"] in kinds and (spin or e.get("text") != "spin")]


def test_the_first_line_tells_the_process_and_the_last_how_many_events(events: list[dict[str, Any]]) -> None:
    first, *middle, last = events
    assert (first["kind"], first["nvtx"], first["name"]) == ("process", 3, "calls")
    assert last == {"kind": "exit", "t": last["t"], "pid": first["pid"], "events": len(middle), "lost": 0}
    assert {e["pid"] for e in events} == {first["pid"]}


def test_wide_registered_and_plain_text(events: list[dict[str, Any]]) -> None:
    texts = [(e["text"], e["form"]) for e in of(events, "mark", "push", "start")]
    assert texts == [
        ('wide \U0001f600 "quoted" \\ \n', "wide"),
        ("registered \u00e9", "registered"),
        ("registered \u00e9", "registered"),
        ("registered \u00e9", "registered"),
        (None, None),
        ("x" * 512 + "...[4488 more characters]", "ascii"),
        ("bad \ufffd\ufffd utf-8", "ascii"),
        (None, None),
        ("plain wide", "wide"),
    ]
    registered = of(events, "register_string")
    assert [(e["text"], e["domain"]) for e in registered] == [("registered \u00e9", "forms")]


def test_payload_category_and_colour(events: list[dict[str, Any]]) -> None:
    marked, pushed, started, nan, short = of(events, "mark", "push", "start")[:5]
    assert marked["payload"] == {"type": "u64", "value": 2**64 - 1}
    assert pushed["payload"] == {"type": "f32", "value": 0.5}
    assert started["payload"] == {"type": "i32", "value": -3}
    assert nan["payload"]["type"] == "f64"
    assert "nan" in nan["payload"]["value"]
    assert (marked["category"], marked["color"], started["color"]) == (7, 0xFF102030, None)
    assert (marked["version"], marked["size"]) == (3, 48)
    assert short["size"] == 16
    assert "payload" not in short, "a smaller structure is not read past its end"


def test_names_of_categories_threads_and_domains(events: list[dict[str, Any]]) -> None:
    named = [(e["domain"], e["category"], e["text"]) for e in of(events, "name_category")]
    assert named == [("forms", 7, "seven"), ("", 8, "eight")]
    assert [(e["thread"], e["text"]) for e in of(events, "name_thread")] == [(4242, "loader")]
    assert [(e["kind"], e["domain"]) for e in of(events, "domain_create", "domain_destroy")] == [
        ("domain_create", "forms"), ("domain_destroy", "forms"),
    ]  # fmt: skip


def test_a_range_ends_on_another_thread(events: list[dict[str, Any]]) -> None:
    start = next(e for e in events if e["kind"] == "start" and e["domain"] == "forms")
    end = next(e for e in events if e["kind"] == "end" and e["id"] == start["id"])
    assert end["tid"] != start["tid"]
    assert end["t"] >= start["t"]


def test_threads_never_mix_lines(events: list[dict[str, Any]]) -> None:
    """4 threads of 500 pairs write at once; each one's calls are whole and in order."""
    spins = [e for e in events if e["kind"] in ("push", "pop") and e["domain"] == ""]
    threads = {e["tid"] for e in spins}
    assert len(threads) == 4
    for tid in threads:
        assert [e["kind"] for e in spins if e["tid"] == tid] == ["push", "pop"] * 500


def test_a_process_that_dies_loses_no_event(program: Path, events: list[dict[str, Any]], tmp_path: Path) -> None:
    assert inject.record([str(program), "die"], tmp_path / "died.jsonl") == 3
    died = read(tmp_path / "died.jsonl")
    assert sorted(e["kind"] for e in died) == sorted(e["kind"] for e in events[:-1])


def test_without_a_file_to_write_nvtx_stays_off(program: Path, tmp_path: Path) -> None:
    env = {inject.ATTACH: str(inject.library())}
    assert subprocess.run([str(program)], env=env, cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_announces_itself(tmp_path: Path) -> None:
    code = (
        "import nvtx, os\n"
        "d = nvtx.get_domain('x'); a = d.get_event_attributes(message='both', payload=3)\n"
        "pid = os.fork()\n"
        "d.end_range(d.start_range(a))\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    lines = tmp_path / "forked.jsonl"
    try:
        assert inject.record([sys.executable, "-c", code], lines) == 0
    except inject.RecorderUnavailable as why:
        pytest.skip(f"NVTX calls cannot be recorded here: {why}")
    found = read(lines)
    pids = [e["pid"] for e in found if e["kind"] == "process"]
    assert len(set(pids)) == 2
    starts = [e for e in found if e["kind"] == "start"]
    assert {e["pid"] for e in starts} == set(pids)
    assert all(e["tid"] == e["pid"] for e in starts), "thread ids are not those of the parent"


def test_the_library_is_built_once(program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    built: list[Path] = []
    threads = [threading.Thread(target=lambda: built.append(inject.library())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(built)) == 1
    assert [p.name for p in (tmp_path / "nvtx").iterdir()] == [built[0].name], "no half-built file stays"
    monkeypatch.setattr(subprocess, "run", lambda *a, **kw: pytest.fail("built a second time"))
    assert inject.library() == built[0]
    assert cache_dir() == tmp_path


def test_no_compiler_and_no_headers_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(inject.RecorderUnavailable, match=r"no C compiler \(no-such-compiler\): install gcc"):
        inject.compiler()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(inject.RecorderUnavailable, match=r"false .* does not build inject.c"):
        inject.library()
    monkeypatch.setattr(inject, "HEADER_PACKAGES", ("no-such-package",))
    with pytest.raises(inject.RecorderUnavailable, match="pip install nvidia-nvtx-cu12"):
        inject.library()
