"""Laws of texts beside recordings: the first name of a role counts, and any value is text."""

from w2v_jax.data.archives.texts import as_text, role_names


def test_texts_of_any_type_are_text_and_the_first_name_of_a_role_counts():
    values = (None, "a\udcff", b"b\xff", 7, ["c", 1, b"d"], [])
    assert [as_text(value) for value in values] == ["", "a\ufffd", "b\ufffd", "7", "c 1 d", ""]
    assert role_names(["sentence", "text", "client_id", "x"]) == {"transcript": "text", "speaker": "client_id"}
