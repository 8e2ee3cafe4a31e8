"""The proxy's objects follow its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_proxy.config import Flags, load_all
from tests.chart.helm import FULLNAME, RELEASE, Rendered, render

NAME = f"{FULLNAME}-proxy"
SMOLLM2 = {"smollm2": {"storageUri": "pvc://models/smollm2"}}
BOTH = {**SMOLLM2, "phi": {"storageUri": "pvc://models/phi"}}


def pod(release: Rendered) -> dict[str, Any]:
    template = release.one("Deployment")["spec"]["template"]["spec"]
    assert isinstance(template, dict)
    return template


def test_image_by_digest() -> None:
    """A digest names the image of proxy and predictor, whatever the tag says."""
    digest = f"sha256:{'a1' * 32}"
    release = render(
        {
            "proxy": {"image": {"repository": "r/proxy", "tag": "1", "digest": digest}},
            "modelDefaults": {"image": {"digest": digest}},
            "models": SMOLLM2,
        }
    )

    assert container(release)["image"] == f"r/proxy@{digest}"
    (predictor,) = release.one("ServingRuntime", "smollm2")["spec"]["containers"]
    assert predictor["image"] == f"kserve-llamacpp/predictor@{digest}"


def container(release: Rendered) -> dict[str, Any]:
    (found,) = pod(release)["containers"]
    assert isinstance(found, dict)
    return found


def checksum(release: Rendered) -> str:
    metadata = release.one("Deployment")["spec"]["template"]["metadata"]
    return str(metadata["annotations"]["checksum/config"])


def settings(values: dict[str, Any] | None = None) -> dict[str, Any]:
    data = render(values).one("ConfigMap")["data"]
    loaded = yaml.safe_load(data["config.yaml"])
    assert isinstance(loaded, dict)
    return loaded


def test_without_a_model() -> None:
    """The defaults give a proxy that knows that it has no upstream, and reaches DNS alone."""
    release = render()

    assert {entry["kind"] for entry in release.objects} == {
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    data = settings()
    assert data["without_upstream"] is True
    assert "upstream_url" not in data
    (dns,) = release.one("NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"models": SMOLLM2}, "http://smollm2-pods:8080"),
        ({"models": BOTH, "proxy": {"model": "phi"}}, "http://phi-pods:8080"),
        ({"models": BOTH, "proxy": {"upstreamUrl": "http://vllm:8000"}}, "http://vllm:8000"),
        ({"models": {**SMOLLM2, "phi": {"enabled": False}}}, "http://smollm2-pods:8080"),
        (
            {"models": {"smollm2": {"storageUri": "pvc://m/s", "deploymentMode": "Knative"}}},
            "http://smollm2-predictor.llm.svc",
        ),
    ],
    ids=["the only one", "the named one", "a URL", "the enabled one", "Knative"],
)
def test_upstream(values: dict[str, Any], url: str) -> None:
    """Requests go to the only model, to the one that is named, or to a URL."""
    data = settings(values)

    assert data["upstream_url"] == url
    assert "without_upstream" not in data
    # only our own predictor is told which clients have the same key
    is_ours = "vllm" not in url
    assert data.get("upstream_headers") == ({"tenant_from_key": True} if is_ours else None)


@pytest.mark.parametrize(
    "given",
    [
        {"max_body_bytes": 16777216},
        {"request_timeout_seconds": 0.5},
        {"use_env_proxies": True},
        {"log_level": "debug"},
    ],
)
def test_settings(given: dict[str, Any]) -> None:
    """A setting stands in the proxy's file as it was written, numbers without an exponent."""
    release = render({"proxy": {"config": given}})
    ((name, value),) = given.items()
    text = release.one("ConfigMap")["data"]["config.yaml"]

    assert f"{name}: {str(value).lower()}\n" in f"{text}\n"
    assert settings({"proxy": {"config": given}})[name] == value


def test_proxy_takes_the_file(tmp_path: Path) -> None:
    """The proxy starts with the file that the defaults make."""
    path = tmp_path / "config.yaml"
    path.write_text(render().one("ConfigMap")["data"]["config.yaml"], encoding="utf-8")

    loaded = load_all(Flags(config=str(path)), {})

    assert loaded.settings.without_upstream
    assert (loaded.settings.grace_seconds, loaded.settings.log_format) == (30, "json")


def test_several_upstreams() -> None:
    """With upstreams of its own the proxy is given no other, and the policy lets it out."""
    upstreams = [{"name": "a", "url": "http://a:8080"}, {"name": "b", "url": "http://b:8080"}]
    values = {"models": BOTH, "proxy": {"config": {"upstreams": upstreams}}}
    data = settings(values)

    assert data["upstreams"] == upstreams
    assert not {"upstream_url", "without_upstream"} & set(data)
    assert render(values).one("NetworkPolicy")["spec"]["egress"] == [{}]


def test_reload() -> None:
    """With `reload` running pods look at the file, and a change does not roll them."""
    rolled, reloaded = render(), render({"proxy": {"reload": True}})

    assert settings()["config_poll_seconds"] == 0
    assert "config_poll_seconds" not in settings({"proxy": {"reload": True}})
    assert checksum(rolled)
    metadata = reloaded.one("Deployment")["spec"]["template"]["metadata"]
    assert "checksum/config" not in metadata["annotations"]


def test_changed_settings_roll_the_pods() -> None:
    """The pods' checksum changes with the settings, and with nothing else."""
    before = checksum(render())

    assert checksum(render({"proxy": {"config": {"log_level": "debug"}}})) != before
    assert checksum(render({"proxy": {"upstreamUrl": "http://vllm:8000"}})) != before
    assert checksum(render({"proxy": {"replicas": 5, "service": {"port": 8000}}})) == before


def test_pods_read_the_settings() -> None:
    """The container's configuration file is the ConfigMap's; own variables come after its name."""
    env = [{"name": "OPENAI_PROXY_QUIET", "value": "true"}]
    release = render({"proxy": {"env": env, "envFrom": [{"secretRef": {"name": "own"}}]}})
    found = container(release)

    file, *own = found["env"]
    assert own == env
    assert found["envFrom"] == [{"secretRef": {"name": "own"}}]
    (mount,) = [held for held in found["volumeMounts"] if held["name"] == "config"]
    assert file == {"name": "OPENAI_PROXY_CONFIG", "value": f"{mount['mountPath']}/config.yaml"}
    (volume,) = [held for held in pod(release)["volumes"] if held["name"] == "config"]
    assert volume["configMap"] == {"name": NAME}


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        ({}, 60),
        ({"drain_delay_seconds": 10, "grace_seconds": 300}, 335),
        ({"drain_delay_seconds": 0.5, "grace_seconds": 0.2}, 26),
    ],
)
def test_time_to_end(config: dict[str, Any], seconds: int) -> None:
    """Kubernetes waits for drain delay, grace period and 25 seconds."""
    found = pod(render({"proxy": {"config": config}}))

    assert found["terminationGracePeriodSeconds"] == seconds


def test_time_to_end_as_given() -> None:
    """A time that is given, and is long enough, is taken as it is."""
    found = pod(render({"proxy": {"terminationGracePeriodSeconds": 36}}))

    assert found["terminationGracePeriodSeconds"] == 36


@pytest.mark.parametrize(
    ("image", "reference"),
    [({}, "kserve-llamacpp/proxy:0.1.0"), ({"repository": "r.io/p", "tag": "2"}, "r.io/p:2")],
)
def test_image(image: dict[str, str], reference: str) -> None:
    """The tag is the chart's appVersion unless it is given; `helm test` uses the same image."""
    release = render({"proxy": {"image": image}})

    assert container(release)["image"] == reference
    for tested in release.all("Pod"):
        assert tested["spec"]["containers"][0]["image"] == reference


def test_autoscaler_owns_the_replicas() -> None:
    """With an autoscaler the Deployment says no number: an upgrade would reset it."""
    release = render({"proxy": {"autoscaling": {"enabled": True, "maxReplicas": 4}}})

    assert "replicas" not in release.one("Deployment")["spec"]
    spec = release.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == NAME
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 4)
    assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 80


def test_budget_has_one_bound() -> None:
    """A minimum takes the place of the maximum."""
    budget = {"maxUnavailable": None, "minAvailable": "50%"}
    spec = render({"proxy": {"podDisruptionBudget": budget}}).one("PodDisruptionBudget")["spec"]

    assert spec["minAvailable"] == "50%"
    assert "maxUnavailable" not in spec


@pytest.mark.parametrize(
    ("values", "peers"),
    [
        ({"models": SMOLLM2}, [{"matchLabels": {"app": "isvc.smollm2-predictor"}}]),
        (
            {"models": {"smollm2": {"kind": "Deployment", "volume": {"claimName": "models"}}}},
            [
                {
                    "matchLabels": {
                        "app.kubernetes.io/name": "smollm2",
                        "app.kubernetes.io/instance": RELEASE,
                        "app.kubernetes.io/component": "predictor",
                    }
                }
            ],
        ),
    ],
    ids=["KServe", "Deployment"],
)
def test_policy_lets_out_to_the_model(values: dict[str, Any], peers: list[Any]) -> None:
    """Beside DNS the proxy reaches its model's pods, on their port."""
    _, model = render(values).one("NetworkPolicy")["spec"]["egress"]

    assert [peer["podSelector"] for peer in model["to"]] == peers
    assert model["ports"] == [{"port": 8080, "protocol": "TCP"}]


def test_policy_does_not_know_urls() -> None:
    """An upstream outside the release is not cut off by the policy."""
    release = render({"proxy": {"upstreamUrl": "http://vllm:8000"}})

    assert release.one("NetworkPolicy")["spec"]["egress"] == [{}]


def test_policy_as_given() -> None:
    """Own peers and egress rules take the place of the usual ones; `helm test` is let in."""
    peers = [{"podSelector": {"matchLabels": {"app": "gateway"}}}]
    policy = {"from": peers, "egress": [{"to": peers}]}
    spec = render({"proxy": {"networkPolicy": policy}}).one("NetworkPolicy")["spec"]

    given, tests = spec["ingress"][0]["from"]
    assert given == peers[0]
    assert tests["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    assert spec["egress"] == [{"to": peers}]


def test_ingress() -> None:
    """Each host's paths lead to the proxy's Service."""
    release = render({"proxy": {"ingress": {"enabled": True, "hosts": ["a.example", "b.example"]}}})

    rules = release.one("Ingress")["spec"]["rules"]
    assert [rule["host"] for rule in rules] == ["a.example", "b.example"]
    for rule in rules:
        (path,) = rule["http"]["paths"]
        assert path["path"] == "/"
        assert path["backend"]["service"] == {"name": NAME, "port": {"name": "http"}}


def test_route() -> None:
    """The route leads from the gateway to the proxy's Service."""
    route = {"enabled": True, "parentRefs": [{"name": "gateway"}]}
    release = render({"proxy": {"httpRoute": route, "service": {"port": 8000}}})

    spec = release.one("HTTPRoute")["spec"]
    assert spec["parentRefs"] == [{"name": "gateway"}]
    assert spec["rules"][0]["backendRefs"] == [{"name": NAME, "port": 8000}]


@pytest.mark.parametrize(
    ("account", "name"),
    [({}, NAME), ({"name": "mine"}, "mine"), ({"create": False}, "default")],
)
def test_service_account(account: dict[str, Any], name: str) -> None:
    """The pods' account is the release's own, unless none is made."""
    release = render({"proxy": {"serviceAccount": account}})

    assert pod(release)["serviceAccountName"] == name
    assert release.has("ServiceAccount", name) is account.get("create", True)


def test_spread_is_over_the_own_pods() -> None:
    """A constraint without a selector counts the proxy's pods."""
    spread = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
    release = render({"proxy": {"topologySpreadConstraints": spread}})

    (found,) = pod(release)["topologySpreadConstraints"]
    selector = release.one("Deployment")["spec"]["selector"]
    assert found == {**spread[0], "labelSelector": selector}


def test_switched_off() -> None:
    """Without the proxy a release is its models alone, and has nothing to test."""
    release = render({"proxy": {"enabled": False}, "models": SMOLLM2})

    assert not [entry for entry in release.objects if "proxy" in entry["metadata"]["name"]]
    assert release.has("InferenceService", "smollm2")


@pytest.mark.parametrize("part", ["podDisruptionBudget", "networkPolicy"])
def test_part_switched_off(part: str) -> None:
    """Budget and policy can be left out."""
    kind = part[0].upper() + part[1:]

    assert not render({"proxy": {part: {"enabled": False}}}).all(kind)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"fullnameOverride": "llm"}, "llm-proxy"),
        ({"nameOverride": "llm"}, f"{RELEASE}-llm-proxy"),
        ({"nameOverride": RELEASE}, f"{RELEASE}-proxy"),
    ],
)
def test_names(values: dict[str, Any], name: str) -> None:
    """The objects' name can be set; release and chart are not said twice."""
    assert render(values).has("Deployment", name)
