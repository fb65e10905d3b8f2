"Loopback servers that play other people's services, one file each, with made-up data; `base` is what they share, `collecting` what their tests share."

import pytest

pytest.register_assert_rewrite("servers.collecting")
