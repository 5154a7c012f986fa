"""The files in `cluster/`: read by what reads them where that needs no cluster, else by the fields
that they use; and whom the network rules let in."""

import ipaddress
import re
import subprocess
import tomllib

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT

CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY = next(need for need in PROJECT["dependencies"] if need.startswith("ray["))
RAY_VERSION = RAY.partition("==")[2]
LABELS = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
TEXT = {"type": "string", "minLength": 1}


def section(required, **more):
    """An object with these fields and no others."""
    fields = {**required, **more}
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item):
    return {"type": "array", "items": item, "minItems": 1}


WHOLE = {"type": "string", "pattern": "^[0-9]+$"}
AMOUNTS = section({"cpu": TEXT, "memory": TEXT, "nvidia.com/gpu": WHOLE})
COUNT = {"type": "integer", "minimum": 0}
SECRET = section(
    {
        "secretKeyRef": section(
            {"name": TEXT, "key": TEXT, "optional": {"type": "boolean"}},
        )
    }
)
POD = section(
    {
        "metadata": section({"labels": LABELS}),
        "spec": section(
            {
                "securityContext": section({"fsGroup": COUNT}),
                "containers": listed(
                    section(
                        {
                            "name": TEXT,
                            "image": TEXT,
                            "env": listed(section({"name": TEXT}, value=TEXT, valueFrom=SECRET)),
                            "resources": section({"limits": AMOUNTS, "requests": AMOUNTS}),
                            "volumeMounts": listed(section({"name": TEXT, "mountPath": TEXT})),
                        }
                    )
                ),
                "volumes": listed(
                    section(
                        {"name": TEXT},
                        emptyDir=section({"medium": {"const": "Memory"}, "sizeLimit": TEXT}),
                        persistentVolumeClaim=section({"claimName": TEXT}),
                    )
                ),
            }
        ),
    }
)
START = {"type": "object", "additionalProperties": {"type": "string"}}  # Go: map[string]string
RAY_JOB = section(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": section({"name": TEXT}),
        "spec": section(
            {
                "entrypoint": TEXT,
                "shutdownAfterJobFinishes": {"const": True},
                "ttlSecondsAfterFinished": COUNT,
                "rayClusterSpec": section(
                    {
                        "rayVersion": {"const": RAY_VERSION},
                        "authOptions": section({"mode": {"const": "token"}}),
                        "headGroupSpec": section({"rayStartParams": START, "template": POD}),
                        "workerGroupSpecs": listed(
                            section(
                                {
                                    "groupName": TEXT,
                                    "replicas": COUNT,
                                    "minReplicas": COUNT,
                                    "maxReplicas": COUNT,
                                    "rayStartParams": START,
                                    "template": POD,
                                }
                            )
                        ),
                    }
                ),
            }
        ),
    }
)
CHOSEN = section({}, matchLabels=LABELS)
POLICY = section(
    {
        "apiVersion": {"const": "networking.k8s.io/v1"},
        "kind": {"const": "NetworkPolicy"},
        "metadata": section({"name": TEXT}),
        "spec": section(
            {
                "podSelector": CHOSEN,
                "policyTypes": {"const": ["Ingress"]},
                "ingress": listed(
                    section(
                        {"from": listed(section({}, podSelector=CHOSEN, namespaceSelector=CHOSEN))},
                        ports=listed(section({"protocol": {"const": "TCP"}, "port": COUNT})),
                    )
                ),
            }
        ),
    }
)


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def test_the_cluster_launcher_takes_aws_yaml():
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = read("aws.yaml")
    validate_config(prepare_config(given))
    for commands in (given["head_start_ray_commands"], given["worker_start_ray_commands"]):
        started = [command for command in commands if "ray start" in command]
        assert started and all("export RAY_AUTH_MODE=token" in command for command in started)
    assert "--dashboard-host=127.0.0.1" in given["head_start_ray_commands"][-1]
    assert given["docker"]["image"].startswith(f"rayproject/ray:{RAY_VERSION}-")
    del given["head_node_type"]
    with pytest.raises(ValueError, match="head_node_type"):  # it does look
        validate_config(prepare_config(given))


def test_the_ray_job_has_the_fields_that_kuberay_knows():
    job = read("kuberay-rayjob.yaml")
    jsonschema.Draft202012Validator(RAY_JOB).validate(job)
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} == volumes
    for config in re.findall(r"--config ([\w/.]+)", job["spec"]["entrypoint"]):
        assert (ROOT / config).is_file()
    claim = pod["volumes"][1]["persistentVolumeClaim"]["claimName"]
    assert claim in (CLUSTER / "README.md").read_text()


def admitted(policy, pod, port, namespace="default"):
    """What Kubernetes makes of the rules: whether a pod with these labels reaches the port."""
    for rule in policy["spec"]["ingress"]:
        if "ports" in rule and port not in {each["port"] for each in rule["ports"]}:
            continue
        for peer in rule["from"]:
            home = {"kubernetes.io/metadata.name": namespace}
            if "namespaceSelector" in peer:
                near = peer["namespaceSelector"].get("matchLabels", {}).items() <= home.items()
            else:
                near = namespace == "default"
            if near and peer["podSelector"].get("matchLabels", {}).items() <= pod.items():
                return True
    return False


def test_the_network_policy_closes_the_job_s_pods_to_others():
    policy, job = read("kuberay-network-policy.yaml"), read("kuberay-rayjob.yaml")
    jsonschema.Draft202012Validator(POLICY).validate(policy)
    spec = job["spec"]["rayClusterSpec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    pods = [group["template"]["metadata"]["labels"] for group in groups]
    assert all(chosen <= pod.items() for pod in pods)
    submitter = {"job-name": job["metadata"]["name"]}
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    for port in (6379, 8080, 8265, 10001, 34567):
        assert all(admitted(policy, pod, port) for pod in pods)
        assert not admitted(policy, {"app": "stranger"}, port)
        assert not admitted(policy, pods[0], port, "another")
        assert admitted(policy, submitter, port) == (port == 8265)
        assert admitted(policy, operator, port, "kuberay") == (port == 8265)
        assert admitted(policy, prometheus, port, "monitoring") == (port == 8080)
        assert not admitted(policy, prometheus, port, "another")


def verdict(rules, source, protocol, port, interface="eth0", state="new"):
    """What the chain's rules, in their order, make of a packet."""
    members = re.search(r"elements = \{ (.*?) \}", rules).group(1).split(", ")
    chain = re.search(r"chain input \{\n(.*?)\n  \}", rules, re.DOTALL).group(1)
    hook, *lines = [line.strip() for line in chain.splitlines()]
    assert hook == "type filter hook input priority filter; policy accept;"
    for line in lines:
        *matches, what = line.split()
        match matches:
            case ["iifname", name]:
                hit = name == f'"{interface}"'
            case ["ct", "state", states]:
                hit = state in states.split(",")
            case ["ip", "saddr", "@members"]:
                address = ipaddress.ip_address(source)
                hit = any(address in ipaddress.ip_network(member) for member in members)
            case ["tcp" | "udp" as kind, "dport", ports]:
                low, high = map(int, ports.split("-"))
                hit = kind == protocol and low <= port <= high
            case _:
                pytest.fail(f"firewall.nft: a rule that this test does not know: {line}")
        if hit:
            return what
    return "accept"


def test_the_firewall_closes_ray_s_ports_to_all_but_members():
    rules = (CLUSTER / "firewall.nft").read_text()
    inside, outside = "10.0.0.7", "203.0.113.5"
    # The head's, the dashboard's, its agents', the client's, and one as the exporter picks it.
    for port in (6379, 8265, 52365, 10001, 44217, 44227, 61234):
        assert verdict(rules, outside, "tcp", port) == "drop"
        assert verdict(rules, "2001:db8::5", "tcp", port) == "drop"
        assert verdict(rules, inside, "tcp", port) == "accept"
        assert verdict(rules, "127.0.0.1", "tcp", port, interface="lo") == "accept"
    assert verdict(rules, outside, "udp", 6379) == "drop"
    assert verdict(rules, outside, "tcp", 22) == "accept"
    assert verdict(rules, outside, "tcp", 61234, state="established") == "accept"


def test_the_image_has_our_ray_and_copies_what_is_there():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    commands = [line.split() for line in lines if line and not line.startswith("#")]
    assert {words[0] for words in commands} == {"FROM", "COPY", "WORKDIR", "RUN"}
    (image,) = [words[1] for words in commands if words[0] == "FROM"]
    version, python, _ = image.removeprefix("rayproject/ray:").split("-")
    assert version == RAY_VERSION
    assert "Programming Language :: Python :: 3." + python[3:] in PROJECT["classifiers"]
    for words in commands:
        if words[0] == "COPY":
            sources = [word for word in words[1:-1] if not word.startswith("--")]
            assert sources and all((ROOT / source).exists() for source in sources)
    (extras,) = re.findall(r"'\.\[(.*)\]'", " ".join(" ".join(words) for words in commands))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


def test_every_version_of_ray_that_is_named_is_the_pinned_one():
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            found = re.findall(
                r"rayproject/ray:([\d.]+)|rayVersion: \"([\d.]+)\"", path.read_text()
            )
            assert {a or b for a, b in found} <= {RAY_VERSION}, path


def test_bash_reads_the_slurm_script():
    done = subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md", "cluster/SCALING.md"])
def test_every_command_for_a_cluster_switches_the_token_on(page):
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    starting = [b for b in blocks if re.search(r"\bray (start|up|job|dashboard)\b", b)]
    assert page == "cluster/SCALING.md" or starting
    for block in starting:
        assert "export RAY_AUTH_MODE=token" in block, block


def test_the_sizes_of_scaling_md_fit_where_it_says():
    from grm_ray.config.load import load, validate
    from grm_ray.config.ppo import PpoJob
    from grm_ray.drivers.checks.plan import bundles_of
    from grm_ray.runtime.placement import Node, fit

    (one,) = re.findall(r"```yaml\n(.*?)```", (CLUSTER / "SCALING.md").read_text(), re.DOTALL)
    raw = yaml.safe_load((ROOT / "configs" / "ppo_grm.yaml").read_text())
    raw |= {key: value for key, value in yaml.safe_load(one).items() if key == "workers"}
    raw["rollout"] |= yaml.safe_load(one)["rollout"]
    raw["policy"] |= yaml.safe_load(one)["policy"]
    fit(bundles_of(validate(PpoJob, raw, "SCALING.md")), [Node("one", 16, 1)])
    config = ROOT / "configs" / "ppo_grm.yaml"
    for nodes, rollout, scorer, learner in ((1, 4, 2, 2), (64, 256, 128, 128)):
        counts = {"rollout": rollout, "scorer": scorer, "learner": learner}
        job = load(PpoJob, config, [f"workers.{role}.count={n}" for role, n in counts.items()])
        fit(bundles_of(job), [Node(f"n{i}", 96, 8) for i in range(nodes)])
