"""What does not fit is said before anything starts, with what the cluster has."""

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Workers
from grm_ray.runtime.placement import (
    Node,
    bundles,
    declared,
    fit,
    most_at_once,
    places,
    resources,
)


def test_fractions_of_cpus_share_a_small_node():
    wanted = bundles({"a": Workers(count=2, cpus=0.5), "b": Workers(count=4, cpus=0.25)})
    placed = fit(wanted, [Node("n", 2, 0)])
    assert set(placed) == set(wanted)


def test_tenths_add_up():
    fit(bundles({"a": Workers(count=3, cpus=0.1)}), [Node("n", 0.3, 0)])


def test_gpus_spread_over_nodes():
    wanted = bundles({"a": Workers(count=12, cpus=1, gpus=1), "b": Workers(count=4, cpus=1)})
    placed = fit(wanted, [Node("x", 16, 8), Node("y", 16, 8)])
    assert sum(n.name == "x" and b.gpus == 1 for b, n in placed.items()) == 8


def test_too_much_is_refused_with_names():
    with pytest.raises(ConfigError) as error:
        fit(bundles({"learner": Workers(count=3, cpus=1)}), [Node("n", 2, 0)])
    assert "3 CPU" in str(error.value) and "learner 2" in str(error.value)


def test_a_bundle_larger_than_any_node_is_refused_although_the_sum_fits():
    with pytest.raises(ConfigError, match="No room for: a 0"):
        fit(bundles({"a": Workers(cpus=3)}), [Node("x", 2, 0), Node("y", 2, 0)])


def test_cluster_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("nodes:\n- {name: gpu, cpus: 96, gpus: 8, count: 2}\n")
    assert [n.name for n in declared(path)] == ["gpu-0", "gpu-1"]
    path.write_text("nodes:\n- {name: gpu, cpu: 96}\n")
    with pytest.raises(ConfigError, match="did you mean 'cpus'"):
        declared(path)
    with pytest.raises(ConfigError, match="does not exist"):
        declared(tmp_path / "none.yaml")


def test_two_nodes_that_look_the_same_are_two():
    nodes = [Node("vm", 1, 0), Node("vm", 1, 0)]
    assert len(fit(bundles({"a": Workers(count=2, cpus=1)}), nodes)) == 2


def test_a_part_of_a_gpu_is_a_part_of_one_device():
    fit(bundles({"a": Workers(count=4, cpus=0.5, gpus=0.5)}), [Node("n", 2, 2)])
    with pytest.raises(ConfigError, match="No room for: a 2"):  # though 1.8 of 2 GPU are asked for
        fit(bundles({"a": Workers(count=3, cpus=0.5, gpus=0.6)}), [Node("n", 2, 2)])
    with pytest.raises(ConfigError, match="No room for: a 1"):  # nor with 2.2 of 2
        fit(
            [*bundles({"a": Workers(count=2, gpus=0.6)}), *bundles({"b": Workers(gpus=1)})],
            [Node("n", 9, 2)],
        )
    with pytest.raises(ValueError, match="whole GPUs"):
        Workers(gpus=1.5)


def test_workers_that_share_devices_are_reserved_together():
    roles = {
        "learner": Workers(count=2, cpus=1, gpus=0.4),
        "rollout": Workers(count=2, cpus=1, gpus=0.6),
        "scorer": Workers(count=1, cpus=1, gpus=1),
    }
    wanted = bundles(roles, ("learner", "rollout"))
    groups = places(wanted)
    assert [[str(b).split(":")[0] for b in group] for group in groups] == [
        ["learner 0", "rollout 0"],
        ["learner 1", "rollout 1"],
        ["scorer 0"],
    ]
    assert resources(groups[0]) == {"CPU": 2, "GPU": 1}
    placed = fit(wanted, [Node("x", 2, 1), Node("y", 8, 2)])
    assert placed[wanted[0]] == placed[wanted[2]] and placed[wanted[1]] == placed[wanted[3]]
    with pytest.raises(ConfigError, match="No room for: learner 1: .*, rollout 1"):
        fit(wanted, [Node("x", 4, 1), Node("y", 1, 2)])  # one CPU too few for two


def test_as_many_jobs_beside_one_another_as_have_room():
    wanted = bundles({"a": Workers(count=2, cpus=1, gpus=1), "b": Workers(count=1, cpus=1)})
    assert most_at_once(wanted, [Node("x", 16, 8), Node("y", 16, 3)]) == 5  # 11 GPUs
    assert most_at_once(wanted, [Node("x", 7, 8)]) == 2  # 7 CPUs
    assert most_at_once(wanted, [Node("x", 16, 0)]) == 0
    assert most_at_once(bundles({"a": Workers(cpus=1)}), [Node("x", 9999, 0)], most=3) == 3


def test_jobs_that_share_devices_do_not_share_them_with_other_jobs():
    parts = {"a": Workers(cpus=1, gpus=0.5), "b": Workers(cpus=1, gpus=0.5)}
    assert most_at_once(bundles(parts, ("a", "b")), [Node("x", 16, 2)]) == 2
