"""Prints the recordings in an archive as JSON: one array of exchanges."""

import json
import sys
import zipfile

from ruamel.yaml import YAML, nodes


def plain(constructor, _suffix, node):
    """Objects of Python's are of no interest here."""
    if isinstance(node, nodes.MappingNode):
        return constructor.construct_mapping(node, deep=True)
    if isinstance(node, nodes.SequenceNode):
        return constructor.construct_sequence(node, deep=True)
    return constructor.construct_scalar(node)


def exchange(recorded):
    request, response = recorded["request"], recorded["response"]
    first = lambda value: value[0] if isinstance(value, list) else value
    return {
        "method": request["method"],
        "url": request["uri"],
        "sent": request.get("body"),
        "status": response["status"]["code"],
        "headers": {name.lower(): first(value) for name, value in response["headers"].items()},
        "answer": (response.get("body") or {}).get("string") or "",
    }


yaml = YAML(typ="safe", pure=True)
yaml.constructor.add_multi_constructor("tag:yaml.org,2002:python/", plain)
archive = zipfile.ZipFile(sys.argv[1])
files = sorted(name for name in archive.namelist() if "/recordings/" in name and name.endswith(".yaml"))
print(json.dumps([exchange(one) for name in files for one in yaml.load(archive.read(name))["interactions"]]))
