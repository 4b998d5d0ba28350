from ldm_vae.errors import UserError


def test_message_names_the_thing_and_the_remedy_in_one_line() -> None:
    error = UserError("recipe x.yaml not found", "give the path of a YAML file")
    assert str(error) == "recipe x.yaml not found: give the path of a YAML file"
    assert (error.what, error.remedy) == ("recipe x.yaml not found", "give the path of a YAML file")
