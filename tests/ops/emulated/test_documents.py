"""What overflows in one document, in the CUDA scan thread by thread on a CPU, reaches no other."""

import pytest

from tests.ops.documents import check_documents_apart


@pytest.mark.parametrize("length", [23, 290], ids=["at once", "in segments"])
def test_a_document_that_overflows_stays_alone(length: int) -> None:
    check_documents_apart("cuda", length)
