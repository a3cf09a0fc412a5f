from common.identity.phrase import as_phrase


def test_phrase_is_the_published_proquint_encoding():
    # Examples of the proposal: 127.0.0.1 and 63.84.220.193.
    assert as_phrase("7f000001" + "3f54dcc1" + "00" * 24) == "lusab-babad-gutih-tugad"
