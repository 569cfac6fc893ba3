/* The loss of a tile: softmax and cross-entropy over 10 logits, lanes are samples.
 *
 * exp and log are our own: libm picks an implementation by processor, and ranks on different
 * processors must get the same bits.
 */
#include "exp_log.h"
#include "kernels.h"
#include "vector.h"

void softmax_loss(float logits[10][TILE], const int32_t labels[TILE], float losses[TILE])
{
    for (int first = 0; first < TILE; first += LANES) {
        ivec label = (ivec)vec_load((const float *)labels + first);
        vec z[10], largest = vec_load(&logits[0][first]), wanted = {0}, sum = {0};
        for (int k = 0; k < 10; k++) {
            z[k] = vec_load(&logits[k][first]);
            largest = vec_select(z[k] > largest, z[k], largest);
            wanted = vec_select(label == k, z[k], wanted);
        }
        for (int k = 0; k < 10; k++) {
            z[k] = vec_exp(z[k] - largest);
            sum += z[k];
        }
        for (int k = 0; k < 10; k++) {
            vec hit = vec_select(label == k, vec_all(1.0f), (vec){0});
            vec_store(&logits[k][first], vec_select(label >= 0, z[k] / sum - hit, (vec){0}));
        }
        vec_store(losses + first, vec_select(label >= 0, vec_log(sum) + (largest - wanted), (vec){0}));
    }
}

int softmax_correct(float logits[10][TILE], const int32_t labels[TILE])
{
    int correct = 0;
    for (int s = 0; s < TILE; s++) {
        int best = 0;
        for (int k = 1; k < 10; k++)
            if (logits[k][s] > logits[best][s])
                best = k;
        correct += best == labels[s];
    }
    return correct;
}
