"""The protocol, asked without a socket: every request, and how each fails."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from starlette.types import ASGIApp

from tests.docker.conftest import Client, answer_of, asking, in_thread, open_store
from volfs.docker.application import BODY_MAX, make_application
from volfs.docker.places import Places
from volfs.docker.plugin import VolumePlugin
from volfs.holder import Holder
from volfs.store import VolumeStore
from volfs.volume import Volume

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.skipif(os.geteuid() != 0, reason="giving volumes away needs root"),
]

IMPOSSIBLE = ("", "..", "../volumes/a", "a/b", "-a", ".a", "a" * 256, "a:b", "\ud800", "a\0b")
"""What no volume can be called."""


class TestHandshake:
    async def test_activate(self, client: Client) -> None:
        assert await client.done("Activate") == {"Implements": ["VolumeDriver"]}

    async def test_capabilities(self, client: Client) -> None:
        assert await client.done("Capabilities") == {"Capabilities": {"Scope": "local"}}

    @pytest.mark.parametrize("body", [b"", b" \n", b"{}", b"null", b'{"Other": [1, {}]}'])
    @pytest.mark.parametrize("path", ["Plugin.Activate", "VolumeDriver.List"])
    async def test_any_body_is_fine_where_nothing_is_asked_for(
        self, client: Client, path: str, body: bytes
    ) -> None:
        assert (await client.send(path, body)).status == 200

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "x", ""])
    async def test_headers_do_not_matter(self, client: Client, kind: str) -> None:
        headers = {"Content-Type": kind, "Accept": "text/html", "Accept-Encoding": "x"}
        answer = await client.send("VolumeDriver.Create", b'{"Name": "a"}', **headers)
        assert answer.status == 200


class TestCreate:
    @pytest.mark.parametrize("options", [{}, None, "left out"])
    async def test_a_volume(self, client: Client, scope: Path, options: object) -> None:
        fields = {} if options == "left out" else {"Opts": options}
        assert await client.done("Create", Name="web", **fields) == {}
        status = (scope / "volumes/web/_data").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o755)

    async def test_with_owner_and_labels(self, client: Client, store: VolumeStore) -> None:
        options = {"uid": "1000", "gid": "50", "mode": "2770", "label.team": "web", "label.": ""}
        answer = await client.ask("Create", Name="web", Opts=options)
        assert "a label needs a name" in answer.error
        del options["label."]
        await client.done("Create", Name="web", Opts=options)
        volume = store.get("web")
        status = os.stat(volume.path)
        assert (status.st_uid, status.st_gid) == (1000, 50)
        assert stat.S_IMODE(status.st_mode) == 0o2770
        assert volume.labels == {"team": "web"}
        assert volume.options == {"uid": "1000", "gid": "50", "mode": "2770"}

    @pytest.mark.parametrize(
        "options", [{}, {"uid": "5"}, {"label.a": "1"}, {"label.a": "1", "mode": "0700"}]
    )
    async def test_the_same_again(
        self, client: Client, store: VolumeStore, options: dict[str, str]
    ) -> None:
        await client.done("Create", Name="web", Opts=options)
        os.mkdir(os.path.join(store.get("web").path, "file"))
        await client.done("Create", Name="web", Opts=options)
        assert os.listdir(store.get("web").path) == ["file"]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({}, {"uid": "5"}),
            ({"uid": "5"}, {"uid": "6"}),
            ({"uid": "5"}, {"uid": "5", "mode": "755"}),
            ({"label.a": "1"}, {"label.a": "2"}),
            ({"label.a": "1"}, {"label.a": "1", "label.b": "1"}),
            ({}, {"label.a": "1"}),
            ({"uid": "5", "label.a": "1"}, {"label.a": "1"}),
        ],
    )
    async def test_another_of_that_name(
        self, client: Client, first: dict[str, str], second: dict[str, str]
    ) -> None:
        await client.done("Create", Name="web", Opts=first)
        answer = await client.ask("Create", Name="web", Opts=second)
        assert answer.status == 500
        assert "'web' exists" in answer.error
        for key, value in first.items():
            assert key.startswith("label.") or f"{key}={value}" in answer.error

    async def test_labels_changed_since_do_not_hinder_a_repetition(
        self, client: Client, store: VolumeStore
    ) -> None:
        await client.done("Create", Name="web", Opts={"uid": "5"})
        store.set_labels("web", {"later": "yes"})
        await client.done("Create", Name="web", Opts={"uid": "5"})
        assert store.get("web").labels == {"later": "yes"}

    async def test_a_volume_of_somebody_else(self, client: Client, scope: Path) -> None:
        (scope / "volumes/made/_data").mkdir(parents=True)
        await client.done("Create", Name="made")

    async def test_unknown_option(self, client: Client, scope: Path) -> None:
        answer = await client.ask("Create", Name="web", Opts={"size": "1G"})
        assert answer.status == 500
        assert re.search(
            r"unknown option 'size'; .* from, gid, mode, path, uid, label.KEY$", answer.error
        )
        assert not (scope / "volumes/web").exists()

    @pytest.mark.parametrize(
        "options", [{"uid": "root"}, {"mode": "9"}, {"path": "x"}, {"uid": ""}]
    )
    async def test_malformed_option(self, client: Client, options: dict[str, str]) -> None:
        (key,) = options
        answer = await client.ask("Create", Name="web", Opts=options)
        assert f"option {key}=" in answer.error
        assert "label" not in answer.error

    @pytest.mark.parametrize("name", IMPOSSIBLE)
    async def test_impossible_name(self, client: Client, scope: Path, name: str) -> None:
        answer = await client.ask("Create", Name=name)
        assert answer.status == 500
        assert "name" in answer.error
        assert os.listdir(scope / "volumes") == []

    async def test_all_at_once_make_one(self, client: Client, store: VolumeStore) -> None:
        async def create() -> None:
            await client.done("Create", Name="web", Opts={"label.a": "b"})

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(create)
        assert store.names() == ["web"]


class TestGet:
    @pytest.mark.parametrize("name", ["nope", *IMPOSSIBLE])
    async def test_a_miss_is_an_answer(self, client: Client, name: str) -> None:
        answer = await client.ask("Get", Name=name)
        assert answer.status == 200
        assert set(answer.reply) == {"Err"}
        assert answer.reply["Err"].startswith("no such volume: ")

    async def test_a_miss_without_a_name(self, client: Client) -> None:
        for body in (b"", b"{}", b'{"Name": null}'):
            answer = await client.send("VolumeDriver.Get", body)
            assert (answer.status, list(answer.reply)) == (200, ["Err"])

    async def test_what_is_known(self, client: Client, scope: Path) -> None:
        before = datetime.now().astimezone()
        await client.done("Create", Name="web", Opts={"uid": "5", "label.team": "a"})
        await client.done("Mount", Name="web", ID="abc")
        volume = (await client.done("Get", Name="web"))["Volume"]
        data = str(scope / "volumes/web/_data")
        made = volume.pop("CreatedAt")
        assert volume == {
            "Name": "web",
            "Mountpoint": data,
            "Status": {
                "driver": "local",
                "data": data,
                "labels": {"team": "a"},
                "options": {"uid": "5"},
                "references": ["abc"],
            },
        }
        # RFC 3339, which fewer texts are than datetime takes.
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", made)
        assert before <= datetime.fromisoformat(made) <= datetime.now().astimezone()

    @pytest.mark.parametrize(
        "record",
        [
            None,
            {},
            {"created_at": ""},
            {"created_at": "yesterday"},
            {"created_at": "0001-01-01T00:00:00+14:00"},
        ],
    )
    async def test_no_time_rather_than_a_wrong_one(
        self, client: Client, scope: Path, record: object
    ) -> None:
        (scope / "volumes/made/_data").mkdir(parents=True)
        if record is not None:
            (scope / "volumes/made/volume.json").write_text(json.dumps(record))
        assert "CreatedAt" not in (await client.done("Get", Name="made"))["Volume"]

    async def test_a_time_with_an_offset_of_seconds(self, client: Client, scope: Path) -> None:
        (scope / "volumes/made/_data").mkdir(parents=True)
        record = {"created_at": "2020-02-03T04:05:06+01:02:03"}
        (scope / "volumes/made/volume.json").write_text(json.dumps(record))
        volume = (await client.done("Get", Name="made"))["Volume"]
        assert volume["CreatedAt"] == "2020-02-03T03:03:03+00:00"

    async def test_another_failure_is_one(
        self, client: Client, store: VolumeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "get", partial(_fail, OSError(errno.EIO, "broken", "/disk")))
        answer = await client.ask("Get", Name="web")
        assert (answer.status, answer.error) == (500, "broken: /disk")


class TestList:
    async def test_nothing(self, client: Client) -> None:
        assert await client.done("List") == {"Volumes": []}

    async def test_whoever_made_them_and_at_once(self, client: Client, scope: Path) -> None:
        await client.done("Create", Name="b")
        (scope / "volumes/a/_data").mkdir(parents=True)
        (scope / "volumes/metadata.db").touch()
        other = open_store(scope)
        other.create("c")
        listed = (await client.done("List"))["Volumes"]
        assert [volume["Name"] for volume in listed] == ["a", "b", "c"]
        assert [volume["Mountpoint"] for volume in listed] == [
            str(scope / f"volumes/{name}/_data") for name in "abc"
        ]
        await client.done("Remove", Name="c")
        assert other.names() == ["a", "b"]
        other.remove("b")
        other.close()
        assert [v["Name"] for v in (await client.done("List"))["Volumes"]] == ["a"]
        assert "Err" in (await client.ask("Get", Name="b")).reply

    async def test_a_broken_one_hides_no_other(
        self, client: Client, store: VolumeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await client.done("Create", Name="a")
        await client.done("Create", Name="b")
        driver = store.drivers.get("local")
        known = driver.read_record  # type: ignore[attr-defined]

        def read(name: str) -> object:
            return _fail(OSError(errno.EIO, "broken")) if name == "a" else known(name)

        monkeypatch.setattr(driver, "read_record", read)
        listed = (await client.done("List"))["Volumes"]
        assert [volume["Name"] for volume in listed] == ["a", "b"]
        assert listed[0]["Mountpoint"] == ""


class TestMount:
    async def test_answers_the_place(self, client: Client, scope: Path) -> None:
        await client.done("Create", Name="web")
        place = str(scope / "volumes/web/_data")
        assert await client.done("Mount", Name="web", ID="one") == {"Mountpoint": place}
        assert await client.done("Path", Name="web") == {"Mountpoint": place}

    async def test_once_is_as_good_as_twice(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        for _ in range(2):
            await client.done("Mount", Name="web", ID="one")
        await client.done("Mount", Name="web", ID="two")
        assert store.references("web") == {"one", "two"}
        for _ in range(2):
            await client.done("Unmount", Name="web", ID="one")
        assert store.references("web") == {"two"}

    @pytest.mark.parametrize("fields", [{}, {"ID": ""}, {"ID": None}])
    async def test_without_an_id(
        self, client: Client, store: VolumeStore, fields: dict[str, object]
    ) -> None:
        await client.done("Create", Name="web")
        await client.done("Mount", Name="web", **fields)
        assert len(store.references("web")) == 1
        await client.done("Unmount", Name="web", **fields)
        assert not store.references("web")

    @pytest.mark.parametrize("name", ["nope", *IMPOSSIBLE])
    async def test_of_nothing(self, client: Client, scope: Path, name: str) -> None:
        answer = await client.ask("Mount", Name=name, ID="one")
        assert answer.status == 500
        assert not (scope / "references").exists()

    @pytest.mark.parametrize("name", ["nope", *IMPOSSIBLE])
    async def test_undone_of_nothing(self, client: Client, name: str) -> None:
        assert await client.done("Unmount", Name=name, ID="one") == {}

    async def test_undone_with_an_unknown_id(self, client: Client) -> None:
        await client.done("Create", Name="web")
        assert await client.done("Unmount", Name="web", ID="one") == {}

    async def test_seen_by_other_processes(self, client: Client, scope: Path) -> None:
        await client.done("Create", Name="web")
        await client.done("Mount", Name="web", ID="one")
        other = open_store(scope)
        assert other.references("web") == {"one"}
        other.close()

    async def test_an_id_that_is_too_long(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        answer = await client.ask("Mount", Name="web", ID="x" * 100_000)
        assert "id" in answer.error
        assert not store.references("web")

    async def test_a_data_path_that_is_not_there(
        self, client: Client, store: VolumeStore, scope: Path
    ) -> None:
        (scope / "volumes/web").mkdir(parents=True)
        (scope / "volumes/web/_data").symlink_to("/nowhere/at/all")
        answer = await client.ask("Mount", Name="web", ID="one")
        assert "/nowhere/at/all: No such file" in answer.error
        assert not store.references("web")


class TestTree:
    """A plugin that answers places in a tree, when that is not there or does not work."""

    @pytest.fixture
    async def client(
        self, store: VolumeStore, scope: Path, tmp_path: Path, waiting: dict[str, float]
    ) -> AsyncIterator[Client]:
        (tmp_path / "mnt").mkdir()
        places = Places(str(scope), str(tmp_path / "mnt"))
        plugin = VolumePlugin(store, places, **waiting)
        async with asking(make_application(plugin)) as client:
            yield client

    async def test_no_tree(
        self, client: Client, store: VolumeStore, scope: Path, tmp_path: Path
    ) -> None:
        await client.done("Create", Name="web")
        # What is there without a tree is not the volume.
        (tmp_path / "mnt/web").mkdir()
        answer = await client.ask("Mount", Name="web", ID="one")
        assert answer.status == 500
        assert f"`volfs mount {scope} {tmp_path}/mnt`" in answer.error
        assert not store.references("web")
        assert await client.done("Path", Name="web") == {"Mountpoint": ""}
        assert (await client.done("Get", Name="web"))["Volume"]["Mountpoint"] == ""

    async def test_a_reference_from_before_stays(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        store.acquire("web", "one")
        assert (await client.ask("Mount", Name="web", ID="one")).status == 500
        assert store.references("web") == {"one"}

    async def test_a_volume_that_goes_without(self, client: Client, scope: Path) -> None:
        await client.done("Create", Name="web", Opts={"path": "native"})
        place = str(scope / "volumes/web/_data")
        assert await client.done("Mount", Name="web", ID="one") == {"Mountpoint": place}
        assert (await client.done("List"))["Volumes"][0]["Mountpoint"] == place

    @pytest.mark.parametrize("waiting", [{"patience": 0.05}])
    async def test_a_tree_that_hangs(
        self, client: Client, store: VolumeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await client.done("Create", Name="web")
        hanging = trio.Event()
        monkeypatch.setattr(Places, "require", lambda self, volume: "/mnt/web")
        monkeypatch.setattr(
            "volfs.docker.places.look", lambda place, volume: trio.from_thread.run(hanging.wait)
        )
        answer = await client.ask("Mount", Name="web", ID="one")
        assert "does not answer" in answer.error
        assert not store.references("web")
        hanging.set()

    async def test_a_volume_that_is_for_the_tree(self, store: VolumeStore, scope: Path) -> None:
        places = Places(str(scope), None, native=True)
        async with asking(make_application(VolumePlugin(store, places))) as client:
            await client.done("Create", Name="web", Opts={"path": "tree"})
            answer = await client.ask("Mount", Name="web", ID="one")
        assert "--mount" in answer.error
        assert not store.references("web")


class TestRemove:
    async def test_into_the_trash(self, client: Client, store: VolumeStore, scope: Path) -> None:
        await client.done("Create", Name="web")
        (scope / "volumes/web/_data/file").write_text("kept")
        assert await client.done("Remove", Name="web") == {}
        assert store.names() == []
        driver = store.drivers.get("local")
        (entry,) = driver.trash.list()  # type: ignore[attr-defined]
        assert entry.by == "docker volume plugin"
        driver.restore("web")  # type: ignore[attr-defined]
        assert (scope / "volumes/web/_data/file").read_text() == "kept"

    @pytest.mark.parametrize("name", ["nope", *IMPOSSIBLE])
    async def test_of_nothing(self, client: Client, name: str) -> None:
        answer = await client.ask("Remove", Name=name)
        assert answer.status == 500
        assert "no volume" in answer.error

    async def test_while_a_container_has_it(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        await client.done("Mount", Name="web", ID="one")
        answer = await client.ask("Remove", Name="web")
        assert answer.status == 500
        assert "in use: reference one" in answer.error
        await client.done("Unmount", Name="web", ID="one")
        await client.done("Remove", Name="web")
        assert store.names() == []

    async def test_says_who_has_it_mounted(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        holder = Holder("mount", "/data", 123, "sleep", "c" * 64)
        store.add_holder_source(lambda volume: [holder])
        answer = await client.ask("Remove", Name="web")
        assert "mounted at /data by process 123 (sleep) in container cccccccccccc" in answer.error

    @pytest.mark.parametrize("waiting", [{"release_time": 0.001}])
    async def test_waits_for_files_to_be_closed(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        left = [[Holder("open", "web/file", 123, "sleep")]] * 3

        def source(volume: Volume) -> Iterable[Holder]:
            return left.pop() if left else []

        store.add_holder_source(source)
        await client.done("Remove", Name="web")
        assert left == []

    @pytest.mark.parametrize("waiting", [{"release_time": 0.001}])
    async def test_does_not_wait_for_ever(self, client: Client, store: VolumeStore) -> None:
        await client.done("Create", Name="web")
        store.add_holder_source(lambda volume: [Holder("open", "web/file", 123, "sleep")])
        answer = await client.ask("Remove", Name="web")
        assert "open web/file by process 123" in answer.error


class TestPath:
    @pytest.mark.parametrize("name", ["nope", *IMPOSSIBLE])
    async def test_of_nothing(self, client: Client, name: str) -> None:
        assert (await client.ask("Path", Name=name)).status == 500


PATHS = ("Create", "Remove", "Mount", "Unmount", "Path", "Get", "List", "Capabilities")


class TestWrongRequests:
    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"nonsense",
            b"\xff\xfe",
            b"\x00",
            b'{"Name": "a"} x',
            b"[]",
            b'"a"',
            b"1",
            b"[" * 100_000,
            b'{"Name": 1}',
            b'{"Name": ["a"]}',
            b'{"ID": {}}',
            b'{"Opts": []}',
            b'{"Opts": {"uid": 5}}',
            b'{"Opts": {"uid": null}}',
        ],
    )
    async def test_malformed(self, client: Client, body: bytes) -> None:
        for path in PATHS:
            answer = await client.send(f"VolumeDriver.{path}", body)
            assert answer.status == 400, path
            assert answer.error

    @pytest.mark.parametrize("path", ["", "VolumeDriver.Nope", "VolumeDriver.Get/", "%ff%00"])
    async def test_unknown_path(self, client: Client, path: str) -> None:
        answer = await client.send(path, b"{}")
        assert answer.status == 404
        assert "no path of this protocol" in answer.error

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
    async def test_wrong_method(self, client: Client, method: str) -> None:
        response = await client.http.request(method, "http://plugin/VolumeDriver.List")
        answer = answer_of(response)
        assert answer.status == 405
        assert "POST" in answer.error
        assert response.headers["allow"] == "POST"

    @pytest.mark.parametrize("path", ["VolumeDriver.Get", "Nope"])
    async def test_too_large(self, client: Client, path: str) -> None:
        answer = await client.send(path, b" " * (BODY_MAX + 1))
        assert answer.status == 413
        assert "1048576" in answer.error

    async def test_as_large_as_can_be(self, client: Client) -> None:
        body = b'{"Name": "web"}'
        answer = await client.send("VolumeDriver.Create", body.ljust(BODY_MAX))
        assert answer.status == 200


class TestOwnFailures:
    async def test_a_full_disk(
        self, client: Client, store: VolumeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(store, "create", partial(_fail, full))
        answer = await client.ask("Create", Name="web")
        assert (answer.status, answer.error) == (500, "No space left on device")

    async def test_a_bug(
        self,
        client: Client,
        store: VolumeStore,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store, "list", partial(_fail, KeyError("oops")))
            answer = await client.ask("List")
        assert answer.status == 500
        assert "oops" in answer.error
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert record.exc_info
        assert (await client.ask("List")).status == 200


async def test_slow_calls_keep_nobody_waiting(
    application: ASGIApp, store: VolumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many copies are being made, questions are answered."""
    going = trio.Event()
    create = store.create
    monkeypatch.setattr(
        store, "create", lambda *a, **k: (trio.from_thread.run(going.wait), create(*a, **k))[1]
    )
    async with asking(application) as client:

        async def create_one(number: int) -> None:
            await client.done("Create", Name=f"v{number}")

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(create_one, number)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(30):
                assert await client.done("List") == {"Volumes": []}
            going.set()
        assert len((await client.done("List"))["Volumes"]) == 100


async def test_a_client_that_goes_away_amid_its_request(application: ASGIApp) -> None:
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/VolumeDriver.Create", "headers": []}
    await application(scope, receive, send)
    assert sent == []


async def test_a_client_that_is_too_slow(
    application: ASGIApp, autojump_clock: trio.testing.MockClock
) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await trio.sleep(1)

    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, timeout=None) as http:
        response = await http.post("http://plugin/VolumeDriver.Get", content=trickle())
    answer = answer_of(response)
    assert answer.status == 408


def _fail(error: Exception, *arguments: object, **fields: object) -> object:
    raise error


async def test_labels_survive_in_another_process(client: Client, scope: Path) -> None:
    await client.done("Create", Name="web", Opts={"label.a": "ä=,b"})
    other = await in_thread(lambda: open_store(scope))
    assert other.get("web").labels == {"a": "ä=,b"}
    other.close()
