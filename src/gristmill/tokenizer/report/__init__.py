"""The fertility report: what is compared (`build`), with which vocabularies (`references`), on which sentences of equal
content (`parallel`), and as a page (`page`)."""
