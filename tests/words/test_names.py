"""What may be a volume's name."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volfs.errors import InvalidNameError, NameTooLongError
from volfs.volume import NAME_MAX, check_name

FORBIDDEN = "/:,\\\"'"


def is_allowed(name: str) -> bool:
    """The rule, as the table of the tree's promises puts it."""
    return (
        0 < len(name.encode("utf-8", "surrogatepass")) <= NAME_MAX
        and name[0] not in ".- "
        and name[-1] != " "
        and not any(char in FORBIDDEN for char in name)
        and not any(unicodedata.category(char) in ("Cc", "Cs") for char in name)
    )


@given(st.text() | st.text(st.sampled_from("ab.- _/:,'\"\\\n\x7f\ud800é")))
def test_a_name_is_allowed_exactly_if_the_rule_says_so(name: str) -> None:
    try:
        assert check_name(name) == name
    except InvalidNameError as error:
        assert not is_allowed(name)
        assert str(error)
    else:
        assert is_allowed(name)


@pytest.mark.parametrize(
    "name", ["vol", "a", "1", "_x", "v.1-2", "vol1 (copy 1)", "[x]", "größe", "數據", "a" * 255]
)
def test_names_people_and_file_managers_use_are_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", [".Trash-0", ".DS_Store", "-v", "a:ro", "a,b", "vol\n", "a\x00"])
def test_names_that_would_be_misread_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_name(name)


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128])
def test_too_long_is_an_error_of_its_own(name: str) -> None:
    with pytest.raises(NameTooLongError):
        check_name(name)
