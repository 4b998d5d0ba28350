import io

from ldm_vae.errors import UserError, in_one_line


def test_message_names_the_thing_and_the_remedy_in_one_line() -> None:
    error = UserError("recipe x.yaml not found", "give the path of a YAML file")
    assert str(error) == "recipe x.yaml not found: give the path of a YAML file"
    assert (error.what, error.remedy) == ("recipe x.yaml not found", "give the path of a YAML file")


def test_an_error_in_one_line_is_the_same_in_every_run() -> None:
    lines = {in_one_line(ValueError(f"no {io.BytesIO()!r}\nnor {object()!r}")) for _ in range(3)}
    assert lines == {"ValueError: no <_io.BytesIO object> nor <object object>"}
    assert in_one_line(ValueError("x" * 500), longest=20) == "ValueError: xxxxxxxx"
