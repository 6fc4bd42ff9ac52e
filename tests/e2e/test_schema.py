# SPDX-License-Identifier: BSD-3-Clause
"""query-qmp-schema is well-formed by QEMU's rules, and matches the arguments that are accepted and the values that are
returned.  M-55"""

import importlib.util
import json
import pathlib

import harness
from test_mirror import MirrorCase

# The paths into the schema by which libvirt and similar clients detect features of our commands.
PROBES = """
blockdev-add/arg-type/+file/aio/^io_uring
blockdev-add/arg-type/driver/^host_device
blockdev-add/arg-type/+qcow2/backing/+qcow2/file/+file/filename/!string
blockdev-add/arg-type/+qcow2/backing/!null
blockdev-add/arg-type/+nbd/server/+inet/port
blockdev-add/arg-type/+nbd/reconnect-delay
blockdev-add/arg-type/+rbd
blockdev-add/arg-type/*detect-zeroes/^unmap
blockdev-add/arg-type/*cache/*no-flush
blockdev-reopen/arg-type/options/+qcow2/file
blockdev-create/arg-type/options/+qcow2/compression-type/^zstd
blockdev-create/arg-type/options/+qcow2/*extended-l2
blockdev-create/arg-type/options/+qcow2/*backing-fmt
blockdev-create/arg-type/options/+file/filename
query-jobs/ret-type/type/^create
blockdev-mirror/arg-type/*target-is-zero/!boolean
blockdev-mirror/arg-type/*copy-mode/^write-blocking
blockdev-backup/arg-type/x-perf/*max-workers/!int
blockdev-backup/arg-type/sync/^bitmap
block-commit/arg-type/*top-node
block-commit/arg-type/*backing-mask-protocol
block-stream/arg-type/*backing-mask-protocol
block-stream/arg-type/*bottom
block-job-change/arg-type/+mirror/copy-mode
block-export-add/arg-type/+nbd/name
block-dirty-bitmap-merge/arg-type/bitmaps/!string
block-dirty-bitmap-merge/arg-type/bitmaps/node
block-export-add/arg-type/+nbd/*bitmaps/!string
block-export-add/arg-type/+nbd/*bitmaps/node
nbd-server-add/arg-type/bitmap
nbd-server-start/arg-type/*tls-creds
nbd-server-start/arg-type/addr/+inet/data/host
query-named-block-nodes/arg-type/*flat
query-named-block-nodes/ret-type/image/format-specific/+qcow2/data/bitmaps/flags/^auto
query-named-block-nodes/ret-type/image/backing-image/backing-image/filename
query-block-jobs/ret-type/+mirror/actively-synced
query-blockstats/ret-type/backing/stats/rd_bytes
query-qmp-schema/ret-type/+object/variants/case
transaction/arg-type/actions/+block-dirty-bitmap-merge/data/bitmaps/!string
transaction/arg-type/actions/+blockdev-backup/data/sync/^incremental
transaction/arg-type/actions/+blockdev-snapshot/data/overlay
transaction/arg-type/properties/completion-mode/^grouped
JOB_STATUS_CHANGE/arg-type/status/^concluded
BLOCK_JOB_COMPLETED/arg-type/*error
"""
ABSENT = """
blockdev-add/arg-type/+nbd/tls-hostname
blockdev-add/arg-type/*driver
blockdev-snapshot/$allow-write-only-overlay
netdev_add/arg-type/+stream
"""
JSON_TYPES = {"string": str, "int": int, "boolean": bool, "null": type(None)}
WRONG = 1.5  # no argument has this type


class Schema:
    def __init__(self, entities):
        self.entities = {entity["name"]: entity for entity in entities}

    def __getitem__(self, name):
        return self.entities[name]

    def of(self, meta_type):
        return sorted(name for name, entity in self.entities.items() if entity["meta-type"] == meta_type)

    def variant(self, entity, value):
        return next(self[v["type"]] for v in entity["variants"] if v["case"] == value)

    def finds(self, path):
        """Does the schema have this path?  In libvirt's syntax: members, +variants, ^enum values, !JSON types, *optional
        members, $features."""
        words = path.split("/")
        return words[0] in self.entities and self.walk(words[0], words[1:])

    def walk(self, name, words):
        entity = self[name]
        if not words:
            return True
        word, rest = words[0], words[1:]
        match entity["meta-type"]:
            case "command" | "event":
                return word in entity and self.walk(entity[word], rest)
            case "array":
                return self.walk(entity["element-type"], words)
            case "alternate":
                return any(self.walk(choice["type"], words) for choice in entity["members"])
            case "enum":
                return word[1:] in entity["values"] and word[0] == "^" and not rest
            case "builtin":
                return word == "!" + entity["json-type"]
        if word[0] == "+":
            found = [v for v in entity.get("variants", []) if v["case"] == word[1:]]
        else:
            found = [m for m in entity["members"] if m["name"] == word.lstrip("*") and (word[0] != "*" or "default" in m)]
        return bool(found) and self.walk(found[0]["type"], rest)

    def misfit(self, value, name):
        """Why the value doesn't match the type; None if it does."""
        entity = self[name]
        kind = {"array": list, "object": dict}.get(entity["meta-type"])
        if kind and type(value) is not kind:
            return f"{value!r} is no {entity['meta-type']}"
        match entity["meta-type"]:
            case "builtin":
                kind = entity["json-type"]
                return None if kind == "value" or type(value) is JSON_TYPES[kind] else f"{value!r} is no {kind}"
            case "enum":
                return None if value in entity["values"] else f"{value!r} is none of {entity['values']}"
            case "array":
                faults = (self.misfit(item, entity["element-type"]) for item in value)
                return next((fault for fault in faults if fault), None)
            case "alternate":
                faults = [self.misfit(value, choice["type"]) for choice in entity["members"]]
                return None if None in faults else f"{value!r}: {faults}"
        members = list(entity["members"])
        if "tag" in entity:
            members += self.variant(entity, value[entity["tag"]])["members"]
        known = {member["name"]: member for member in members}
        for key, item in value.items():
            if key not in known:
                return f"{key} is unknown"
            fault = self.misfit(item, known[key]["type"])
            if fault:
                return f"{key}: {fault}"
        missing = [key for key, member in known.items() if "default" not in member and key not in value]
        return f"{missing} missing" if missing else None


class SchemaCase(MirrorCase):
    def setUp(self):
        super().setUp()
        self.begin()
        self.schema = Schema(self.client.cmd("query-qmp-schema"))


class WellFormed(SchemaCase):
    def test_names(self):
        """each name occurs once, and the commands and events are those of the server"""
        entities = self.client.cmd("query-qmp-schema")
        self.assertEqual(len(entities), len(self.schema.entities))
        self.assertEqual(self.schema.of("command"), sorted(c["name"] for c in self.client.cmd("query-commands")))
        self.assertIn("BLOCK_JOB_READY", self.schema.of("event"))

    def test_no_type_is_missing_or_left_over(self):
        used = set()
        for entity in self.schema.entities.values():
            for key in ("arg-type", "ret-type", "element-type"):
                used |= {entity[key]} if key in entity else set()
            if entity["meta-type"] != "enum":
                used |= {member["type"] for member in entity.get("members", [])}
            used |= {variant["type"] for variant in entity.get("variants", [])}
        types = set(self.schema.entities) - set(self.schema.of("command") + self.schema.of("event"))
        self.assertEqual(used, types)

    def test_each_by_its_meta_type(self):
        members = {"builtin": {"json-type"}, "enum": {"members", "values"}, "array": {"element-type"},
                   "alternate": {"members"}, "command": {"arg-type", "ret-type"}, "event": {"arg-type"}}
        for name, entity in self.schema.entities.items():
            with self.subTest(name=name):
                kind = entity["meta-type"]
                if kind == "object":
                    self.check_object(entity)
                else:
                    self.assertEqual(set(entity), {"name", "meta-type"} | members[kind])
                if "arg-type" in entity:
                    self.assertEqual(self.schema[entity["arg-type"]]["meta-type"], "object")
                if kind == "enum":
                    self.assertEqual([member["name"] for member in entity["members"]], entity["values"])
                    self.assertEqual(len(set(entity["values"])), len(entity["values"]))
                if kind == "array":
                    self.assertEqual(name, f"[{entity['element-type']}]")
                if kind == "alternate":
                    looks = [self.look(choice["type"]) for choice in entity["members"]]
                    self.assertEqual(len(set(looks)), len(looks))

    def look(self, name):
        """The JSON type of a schema type's values."""
        entity = self.schema[name]
        return {"enum": "string"}.get(entity["meta-type"], entity.get("json-type", entity["meta-type"]))

    def check_object(self, entity):
        self.assertEqual("tag" in entity, "variants" in entity)
        names = [member["name"] for member in entity["members"]]
        self.assertEqual(len(set(names)), len(names))
        for member in entity["members"]:
            self.assertIsNone(member.get("default"))
        if "tag" not in entity:
            return
        tag = next(member for member in entity["members"] if member["name"] == entity["tag"])
        self.assertNotIn("default", tag)
        values = self.schema[tag["type"]]["values"]
        self.assertEqual(sorted(variant["case"] for variant in entity["variants"]), sorted(values))
        for variant in entity["variants"]:
            more = self.schema[variant["type"]]
            self.assertEqual((more["meta-type"], "variants" in more), ("object", False))
            self.assertFalse(set(names) & {member["name"] for member in more["members"]})

    def test_what_libvirt_looks_for(self):
        for path in PROBES.split():
            self.assertTrue(self.schema.finds(path), path)
        for path in ABSENT.split():
            self.assertFalse(self.schema.finds(path), path)


class SameAsTheServer(SchemaCase):
    def error_of(self, command, arguments):
        self.client.send({"execute": command, "arguments": arguments})
        reply = self.client.reply()
        self.assertIn("error", reply, f"{command} takes {arguments}")
        return reply["error"]["desc"]

    def probe(self, command, wrap, name, where, seen):
        """Checks that the server accepts exactly the members that the schema has for an object type, and for the types
        inside it.  wrap: puts such an object into the command's arguments."""
        entity = self.schema[name]
        for variant in entity.get("variants", [None]):
            start = {entity["tag"]: variant["case"]} if variant else {}
            members = entity["members"] + (self.schema[variant["type"]]["members"] if variant else [])
            said = self.error_of(command, wrap({"unknown": 1, **start}))
            self.assertIn(f"'{where}unknown' is unexpected", said)
            taken = said.split(" takes ")[1]
            self.assertEqual([] if taken == "no parameters" else taken.split(", "), [m["name"] for m in members])
            for member in members:
                self.probe_member(command, lambda value, m=member["name"], s=start: wrap({m: value, **{
                    k: v for k, v in s.items() if k != m}}), member, where, seen)

    def probe_member(self, command, wrap, member, where, seen):
        where += member["name"]
        self.assertIn(f"Invalid parameter '{where}', expected", self.error_of(command, wrap(WRONG)))
        entity = self.schema[member["type"]]
        if entity["meta-type"] == "enum":
            said = self.error_of(command, wrap("x none"))
            self.assertIn(f"'{where}' does not accept value 'x none', expected: {', '.join(entity['values'])}", said)
        if entity["meta-type"] == "array":
            wrap, where, entity = lambda value, w=wrap: w([value]), where + "[0]", self.schema[entity["element-type"]]
        if entity["meta-type"] == "alternate":
            objects = [c["type"] for c in entity["members"] if self.schema[c["type"]]["meta-type"] == "object"]
            entity = self.schema[objects[0]]
        if entity["meta-type"] == "object" and entity["name"] not in seen:
            self.probe(command, wrap, entity["name"], where + ".", seen | {entity["name"]})

    def test_arguments(self):
        """each accepted argument is in the schema, and each in the schema is accepted, at any depth"""
        for command in self.schema.of("command"):
            if command != "qmp_capabilities":  # accepted only once
                with self.subTest(command=command):
                    name = self.schema[command]["arg-type"]
                    self.probe(command, lambda value: value, name, "", {name})
        self.assertEqual(self.client.cmd("query-jobs"), [])

    def test_what_the_fuzzer_begins_with(self):
        """the fuzzer's initial inputs contain each command with arguments that are accepted"""
        path = pathlib.Path(__file__).parent.parent / "fuzz" / "seeds.py"
        spec = importlib.util.spec_from_file_location("seeds", path)
        seeds = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(seeds)
        requests = [json.loads(text) for text in [seeds.NEGOTIATE, *seeds.COMMANDS]]
        self.assertEqual(sorted({request["execute"] for request in requests}), self.schema.of("command"))
        for request in requests:
            arguments = self.schema[request["execute"]]["arg-type"]
            self.assertIsNone(self.schema.misfit(request.get("arguments", {}), arguments), request)

    def test_results_and_events(self):
        """returned values match the schema: of a chain with bitmaps and snapshots, and while jobs run"""
        disk = self.client
        disk.cmd("block-dirty-bitmap-add", node="drive0", name="b", persistent=True)
        disk.cmd("blockdev-snapshot-internal-sync", device="drive0", name="s")
        disk.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=self.path("top.qcow2"))
        disk.cmd("drive-mirror", job_id="copy", device="drive0", target=self.path("copy"), sync="full", auto_dismiss=False,
                 auto_finalize=False)
        self.client.event("BLOCK_JOB_READY")
        disk.cmd("drive-backup", job_id="back", device="drive0", target=self.path("back"), sync="full", auto_dismiss=False)
        self.client.event("BLOCK_JOB_COMPLETED")
        for command in self.schema.of("command"):
            if command.startswith("query-"):
                result = disk.cmd(command)
                self.assertIsNone(self.schema.misfit(result, self.schema[command]["ret-type"]), command)
                self.assertTrue(result)
        disk.cmd("job-cancel", id="copy")
        listener = self.qmp()
        disk.cmd("quit")
        while (event := listener.receive())["event"] != "SHUTDOWN":
            data = self.schema[event["event"]]["arg-type"]
            self.assertIsNone(self.schema.misfit(event["data"], data), event)
        self.server.wait()


if __name__ == "__main__":
    harness.main()
