"""What isn't there is refused in words that a user knows, with a way out; what has no effect is said once."""

import re

import pytest

NOT_BUILT = {
    "Dict": ('modal.Dict.from_name("d", create_if_missing=True).put("a", 1)', "modal.Dict"),
    "Queue": ('modal.Queue.from_name("q", create_if_missing=True).put(1)', ".spawn()"),
    "Volume": ('modal.Volume.from_name("v", create_if_missing=True).listdir("/")', "Image.add_local_dir"),
    "Sandbox": ('modal.Sandbox.create("true", app=modal.App.lookup("refusals", create_if_missing=True))', "subprocess.run()"),
    "history": ("", "deploy the older code"),
}


@pytest.mark.feature("what isn't built is refused by its feature")
@pytest.mark.parametrize("what", NOT_BUILT)
def test_features_are_refused_in_users_words(client, program, what):
    if what == "history":
        client.modal("deploy", program('import modal\napp = modal.App("refusals")\n', "empty.py")).ok()
    code, way_out = NOT_BUILT[what]
    done = client.modal("app", "history", "refusals") if what == "history" else client.python(program(f"import modal\n{code}\n"))
    text = re.sub(r"[\s│]+", " ", done.text)
    assert done.code != 0 and "in this version of Lydian" in text and way_out in text, done
    assert not re.search(r"\b[A-Z]\w+(GetOrCreate|CreateV2|DeploymentHistory)\b", text.split("Error")[-1]), done


DEPLOYED = '''
import modal
app = modal.App("refused")

@app.function({arguments})
{decorator}
def wanted():
    pass
'''


@pytest.mark.feature("what isn't built is refused at the deployment")
@pytest.mark.parametrize("arguments,decorator,way_out", [
    ("schedule=modal.Period(hours=1)", "", "let cron call"), ("gpu='T4'", "", "drop gpu="), ("block_network=True", "", "drop the argument"),
    ("", "@modal.web_server(8000)", "modal.Function.from_name")])
def test_definitions_are_refused_with_the_functions_name(client, program, arguments, decorator, way_out):
    done = client.modal("deploy", program(DEPLOYED.format(arguments=arguments, decorator=decorator)))
    text = re.sub(r"[\s│]+", " ", done.text)
    assert done.code != 0 and "wanted" in text and way_out in text, done


@pytest.mark.feature("a Python that isn't offered")
def test_a_python_that_isnt_offered(client, program):
    done = client.modal("run", program('''
import modal
app = modal.App("newer", image=modal.Image.debian_slim(python_version="3.12"))

@app.function()
def f():
    pass
'''))
    text = re.sub(r"[\s│]+", " ", done.text)
    assert done.code != 0 and "Python 3.12 is not offered here" in text and 'python_version="3.13"' in text, done
    assert text.index("python_version=") < text.index("image import"), "the easy ways out come first"


UNUSED = '''
import modal
app = modal.App("unused")

@app.function(region="eu", nonpreemptible=True)
def one():
    pass

@app.function(region="eu", cloud="aws")
def two():
    pass

@app.local_entrypoint()
def main():
    one.remote()
'''


@pytest.mark.feature("settings without effect are named once")
def test_settings_without_effect(client, program):
    done = client.modal("run", program(UNUSED)).ok()
    text = re.sub(r"[\s│]+", " ", done.text)
    assert text.count("Without effect in this version of Lydian") == 1, done
    assert "region= of one, two" in text and "nonpreemptible= of one" in text and "cloud= of two" in text, done


def test_a_deployments_tag_is_refused(client, program):
    done = client.modal("deploy", "--tag", "v1", program('import modal\napp = modal.App("tagged")\n'))
    assert done.code != 0 and "--tag" in done.text, done


def test_a_restricted_environment_is_not_made_an_open_one(client):
    done = client.modal("environment", "create", "--restricted", "closed")
    assert done.code != 0 and "Restricted environments" in done.text, done
    assert "closed" not in client.modal("environment", "list").ok().out


FAILING = '''
import modal
app = modal.App("failing", image=modal.Image.debian_slim(python_version="3.11").run_commands("exit 3"))

@app.function()
def f():
    pass
'''


@pytest.mark.feature("image build failure")
def test_a_failed_build_shows_its_own_log_alone(client, program):
    path = program(FAILING)
    first, second = (client.modal("run", path) for _ in range(2))
    for done in (first, second):
        assert done.code != 0
        assert done.out.count("=> RUN exit 3") == 1 and "exit code 3" in done.text, done
