// Sends one call of each kind with the official SDK, flushes twice, and prints what the SDK said.
// usage: node run.mjs HOST WRITE_KEY
import { Analytics } from '@segment/analytics-node'

const [host, writeKey] = process.argv.slice(2)
const analytics = new Analytics({ host, writeKey, flushAt: 4, maxRetries: 2 })
const errors = []
const delivered = []
analytics.on('error', (error) => errors.push({ code: error.code, reason: String(error.reason) }))
const done = (resolve) => (error, context) => {
  if (error) errors.push({ code: 'callback', reason: String(error) })
  else delivered.push({ type: context.event.type, messageId: context.event.messageId })
  resolve()
}
const call = (kind, message) => new Promise((resolve) => analytics[kind](message, done(resolve)))

const user = { userId: 'user-42', anonymousId: 'anonymous-7f1c' }
const calls = [
  call('identify', { ...user, traits: { name: 'Zoë', plan: 'pro' } }),
  call('track', { ...user, event: 'Order Completed', properties: { revenue: 12.5, currency: 'EUR' }, messageId: 'own-id-1' }),
  call('page', { ...user, name: 'Home', properties: { path: '/' } }),
  call('screen', { ...user, name: 'Start' }),
  call('group', { ...user, groupId: 'account-1', traits: { seats: 12 } }),
  call('alias', { userId: 'user-42', previousId: 'anonymous-0' }),
]
await analytics.flush()
await Promise.all(calls)
await analytics.closeAndFlush()
console.log(JSON.stringify({ delivered, errors }))
