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
sdk.CONTRACT_ADDRESSES_BY_CHAIN[chain] = {
  gasRegistry: input.contracts.gas_registry,
  jobRegistry: input.contracts.job_registry,
  safeFactory: input.contracts.safe_factory,
  safeModule: input.contracts.safe_module,
  multisendCallOnly: input.contracts.multisend_call_only,
  rpcUrl: input.rpc_url,
};
const client = new sdk.TriggerXClient(input.api_key, { baseURL: input.coordinator_url });
const provider = new ethers.JsonRpcProvider(input.rpc_url, undefined, { cacheTimeout: -1 });
const signer = new ethers.Wallet(input.account.private_key, provider);

const abi = [
  { type: 'function', name: 'ping', stateMutability: 'nonpayable', inputs: [{ name: 'value', type: 'uint256' }], outputs: [] },
  {
    type: 'event',
    name: 'Pinged',
    anonymous: false,
    inputs: [
      { name: 'value', type: 'uint256', indexed: false },
      { name: 'count', type: 'uint256', indexed: false },
    ],
  },
];
// What differs between the types; fields that belong to another type must be absent, for the SDK tells types apart by them.
const kinds = {
  interval: () => ({ jobType: sdk.JobType.Time, scheduleType: 'interval', timeInterval: input.interval }),
  cron: () => ({ jobType: sdk.JobType.Time, scheduleType: 'cron', cronExpression: input.cron }),
  specific: () => ({ jobType: sdk.JobType.Time, scheduleType: 'specific', specificSchedule: input.specific }),
  event: () => ({
    jobType: sdk.JobType.Event,
    triggerChainId: chain,
    triggerContractAddress: input.contracts.demo,
    triggerEvent: input.event ?? 'Pinged',
    recurring: false,
  }),
  condition: () => ({
    jobType: sdk.JobType.Condition,
    conditionType: 'greater_than',
    upperLimit: 0.2,
    lowerLimit: 0,
    valueSourceType: 'static',
    valueSourceUrl: 'static:0.5',
    recurring: false,
  }),
  script: () => ({ jobType: sdk.JobType.CustomScript, timeInterval: input.interval, recurring: true }),
};

const commands = {
  create: () =>
    sdk.createJob(client, {
      jobInput: {
        argType: sdk.ArgType.Static,
        jobTitle: input.title ?? 'sdk job',
        timeFrame: input.time_frame,
        timezone: 'UTC',
        chainId: chain,
        targetContractAddress: input.contracts.demo,
        targetFunction: 'ping(uint256)',
        abi: JSON.stringify(abi),
        isImua: false,
        autotopupETH: true,
        ...kinds[input.kind ?? 'interval'](),
        ...(input.script
          ? { argType: sdk.ArgType.Dynamic, dynamicArgumentsScriptUrl: input.script, language: input.language ?? 'py' }
          : { arguments: [input.value] }),
        ...input.overrides,
      },
      signer,
    }),
  'create-safe': async () => ({ success: true, safe: await sdk.createSafeWallet(signer) }),
  get: () => sdk.getJobDataById(client, input.job_id, signer.address),
  jobs: () => sdk.getJobData(client),
  'jobs-of-user': () => sdk.getJobsByUserAddress(client, signer.address),
  user: () => sdk.getUserData(client, signer.address),
  delete: () => sdk.deleteJob(client, input.job_id, signer, chain),
};

const answer = await commands[process.argv[2]]();
process.stdout.write(JSON.stringify(answer, (_, value) => (typeof value === 'bigint' ? value.toString() : value)) + '\n');
process.exit(0); // the provider would poll on
