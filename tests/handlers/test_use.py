"""A handler that another item of a config defines."""

from __future__ import annotations

from monai.bundle import ConfigParser

from mednext_monai.handlers import use


def test_the_handler_in_the_list_is_the_one_that_other_items_use():
    config = ConfigParser(
        {"loss": {"_target_": "mednext_monai.handlers.MeanLoss"}}
        | {"handlers": [{"_target_": "mednext_monai.handlers.use", "handler": "@loss"}]}
    )
    assert config.get_parsed_content("handlers")[0] is config.get_parsed_content("loss")
    assert use(3) == 3
