//! OpenID Connect 1.0: authorization code with PKCE.
