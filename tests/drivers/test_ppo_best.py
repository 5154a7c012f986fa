"""Which policy of a PPO run is the best one, where some evaluations cannot say."""

from types import SimpleNamespace

from grm_ray.drivers.ppo.run import PpoRun


def test_an_evaluation_without_the_figure_is_told_of_and_not_compared():
    said, saved = [], []
    driver = SimpleNamespace(
        _config=SimpleNamespace(checkpoint=SimpleNamespace(best_by="true_reward")),
        _table=SimpleNamespace(message=said.append),
        _save=lambda: saved.append(driver._step),
        _best=None,
        _step=0,
    )
    for step, figure in enumerate([{}, {"eval/true_reward": 1.0}, {}, {"eval/true_reward": 0.5}]):
        driver._step = step
        PpoRun._keep_if_best(driver, figure)
    assert saved == [1] and driver._best == 1.0
    assert [line.split(":")[0] for line in said] == ["step 0", "step 2"]
    assert "no held-out answer has a true_reward" in said[0]
