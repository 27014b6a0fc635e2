"""What overflows in one document reaches no other."""

import pytest

from tests.ops.documents import check_documents_apart


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("length", [23, 290])
def test_a_document_that_overflows_stays_alone(backend: str, length: int) -> None:
    check_documents_apart(backend, length)
