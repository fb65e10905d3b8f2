"Loopback servers that play other people's services, one file each, with made-up data; `base` is what they share."
