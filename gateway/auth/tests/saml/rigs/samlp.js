// An identity provider of npm's `samlp`: node samlp.js KEY.pem CERTIFICATE.pem ACS_URL [PORT [AUDIENCE]]. Prints its port
// when it listens. AUDIENCE stands in its assertions in place of who asked.
// GET /metadata; GET /sso?SAMLRequest=…&RelayState=…&as=alice answers with a form for ACS_URL.
const fs = require('fs');
const express = require('express');
const samlp = require('samlp');

const [keyFile, certificateFile, acsUrl, port, audience] = process.argv.slice(2);
const groups = { alice: ['admin', 'sre'], bob: ['dev'] };

function Profile(user) { this.user = user; }
Profile.metadata = [];
Profile.prototype.getClaims = function () { return { groups: groups[this.user.id] || [], name: this.user.id }; };
Profile.prototype.getNameIdentifier = function () {
  return {
    nameIdentifier: `${this.user.id}@example.test`,
    nameIdentifierFormat: 'urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress',
  };
};
const profileMapper = (user) => new Profile(user);
profileMapper.prototype = Profile.prototype;
Profile.prototype.metadata = [];

const shared = {
  issuer: 'urn:test:samlp',
  cert: fs.readFileSync(certificateFile),
  key: fs.readFileSync(keyFile),
  profileMapper,
};
const sso = {
  ...shared,
  signResponse: true,
  signAssertion: true,
  signatureAlgorithm: 'rsa-sha256',
  digestAlgorithm: 'sha256',
  // Without these two, samlp puts the audience where an address belongs.
  destination: acsUrl,
  recipient: acsUrl,
  ...(audience ? { audience } : {}),
  getPostURL: (audience, samlRequest, request, done) => done(null, acsUrl),
  getUserFromRequest: (request) => ({ id: request.query.as || 'alice' }),
};

const app = express();
app.get('/metadata', samlp.metadata({ ...shared, redirectEndpointPath: '/sso', postEndpointPath: '/sso' }));
app.get('/sso', samlp.auth(sso));
app.use((error, request, response, next) => response.status(400).send(String(error.message)));
const server = app.listen(Number(port || 0), '127.0.0.1', () => console.log(server.address().port));
