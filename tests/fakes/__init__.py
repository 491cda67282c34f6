"""Stand-ins for services that cost money or need an account, spoken to over real HTTP on a loopback port."""
