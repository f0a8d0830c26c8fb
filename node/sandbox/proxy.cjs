// Preloaded into Node.js where a script may reach hosts: fetch, http and https go through the proxy of HTTP_PROXY, by CONNECT.
// Node.js reads that variable itself from version 24 on, and only when asked; this does it for all of them.
'use strict';
const http = require('node:http');
const https = require('node:https');
const net = require('node:net');
const tls = require('node:tls');

const proxy = new URL(process.env.HTTP_PROXY);
const direct = new http.Agent(); // to the proxy itself: `agent: false` would mean one of the kind below

function tunnel(host, port, done) {
  const place = `${net.isIPv6(host) ? `[${host}]` : host}:${port}`;
  const request = http.request({
    host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: place, headers: { host: place }, agent: direct,
  });
  request.once('connect', (answer, socket, head) => {
    if (answer.statusCode !== 200) {
      socket.destroy();
      done(new Error(`${place} is not reached: ${head.toString().trim() || answer.statusMessage}`));
      return;
    }
    if (head.length) socket.unshift(head);
    done(null, socket);
  });
  request.once('error', done);
  request.end();
}

function secured(socket, options, done) {
  const secure = tls.connect({ ...options, host: undefined, port: undefined, path: undefined, socket });
  secure.once('secureConnect', () => done(null, secure));
  secure.once('error', done);
}

class HttpAgent extends http.Agent {
  createConnection(options, done) {
    tunnel(options.host, options.port || 80, done);
  }
}

class HttpsAgent extends https.Agent {
  createConnection(options, done) {
    tunnel(options.host, options.port || 443, (error, socket) => (error ? done(error) : secured(socket, options, done)));
  }
}

http.globalAgent = new HttpAgent();
https.globalAgent = new HttpsAgent();

// fetch is undici's; the class of its dispatcher is reached only through the one that it makes for itself.
const dispatcher = Symbol.for('undici.globalDispatcher.1');
void new Headers();
const Agent = globalThis[dispatcher].constructor;
globalThis[dispatcher] = new Agent({
  connect({ hostname, port, protocol, servername }, done) {
    const safe = protocol === 'https:';
    const host = hostname.replace(/^\[|\]$/g, '');
    tunnel(host, port || (safe ? 443 : 80), (error, socket) => {
      if (error || !safe) done(error, socket);
      else secured(socket, { servername: servername || (net.isIP(host) ? undefined : host), ALPNProtocols: ['http/1.1'] }, done);
    });
  },
});
