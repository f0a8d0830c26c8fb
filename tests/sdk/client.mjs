// Drives the unmodified npm `sdk-triggerx` with an ethers signer: `node client.mjs COMMAND`, a JSON object on stdin,
// one line of JSON on stdout. NODE_PATH names the folder that holds both packages.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

console.log = console.info = console.error; // the SDK talks on stdout, which is ours
const require = createRequire(import.meta.url); // finds packages by NODE_PATH, which import does not
const sdk = require('sdk-triggerx');
const { ethers } = require('ethers');

const input = JSON.parse(readFileSync(0, 'utf8'));
const chain = String(input.chain_id);
const none = ethers.ZeroAddress;
sdk.CONTRACT_ADDRESSES_BY_CHAIN[chain] = {
  gasRegistry: input.contracts.gas_registry,
  jobRegistry: input.contracts.job_registry,
  safeFactory: none,
  safeModule: none,
  multisendCallOnly: none,
  rpcUrl: input.rpc_url,
};
const client = new sdk.TriggerXClient(input.api_key, { baseURL: input.coordinator_url });
const provider = new ethers.JsonRpcProvider(input.rpc_url, undefined, { cacheTimeout: -1 });
const signer = new ethers.Wallet(input.account.private_key, provider);

const commands = {
  create: () =>
    sdk.createJob(client, {
      jobInput: {
        jobType: sdk.JobType.Time,
        argType: sdk.ArgType.Static,
        jobTitle: input.title ?? 'sdk job',
        timeFrame: input.time_frame,
        scheduleType: 'interval',
        timeInterval: input.interval,
        timezone: 'UTC',
        chainId: chain,
        targetContractAddress: input.contracts.demo,
        targetFunction: 'ping(uint256)',
        abi: JSON.stringify([
          { type: 'function', name: 'ping', stateMutability: 'nonpayable', inputs: [{ name: 'value', type: 'uint256' }], outputs: [] },
        ]),
        arguments: [input.value],
        isImua: false,
        autotopupETH: true,
        ...input.overrides,
      },
      signer,
    }),
  get: () => sdk.getJobDataById(client, input.job_id, signer.address),
  jobs: () => sdk.getJobData(client),
  'jobs-of-user': () => sdk.getJobsByUserAddress(client, signer.address),
  user: () => sdk.getUserData(client, signer.address),
  delete: () => sdk.deleteJob(client, input.job_id, signer, chain),
};

const answer = await commands[process.argv[2]]();
process.stdout.write(JSON.stringify(answer, (_, value) => (typeof value === 'bigint' ? value.toString() : value)) + '\n');
process.exit(0); // the provider would poll on
